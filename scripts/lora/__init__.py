"""What all LoRA trainers share. A family, such as scripts/sdxl_lora, brings the rest: its flags, its base model and its arithmetic.

    program    the command line's course: check what is cheap, then load torch and train
    options    the flags            data         the images, their captions, buckets and order
    ends       the exit codes       base         the model on this disk, known by content
    family     what a family must answer; unet answers for Stable Diffusion 1.5 and XL
    cache      encoded images and captions         checkpoint   folders that count only once verified
    loss       what is learnt from                 loop         prepare, resume, step, watch, export
    sampling   pictures on the way                 export       the finished files, read back and compared

Editing rules: nothing here names a family; runs alone on the rented machine, with no part of remote_trainer.
"""
