"""What all LoRA trainers share. A family, such as scripts/sdxl_lora, brings the rest: its flags, its base model and its arithmetic.

    program    the command line's course: check what is cheap, then load torch and train
    options    the flags                           flags        how they are declared and read
    ends       the exit codes                      base         the model on this disk, known by content
    data       the images' buckets and order       images       image files and masks
    captions   captions and their tags             report       what the dataset amounts to
    family     what a family must answer; unet answers for Stable Diffusion 1.5 and XL
    adapters   LoRA, DoRA, LoHa, LoKr              cache        encoded images and captions
    loss       what is learnt from                 optimisation optimisers, schedules, the average
    loop       encode, prepare, run, export        run          the steps, and what is done between them
    watch      spikes and plateaus                 ranks        several processes that train as one
    metrics    the numbers as they come            laps         where the time before the first step goes
    checkpoint folders that count only once verified   sampling pictures on the way
    export     the finished files, read back; kohya, about: their format

Editing rules: nothing here names a family; runs alone on the rented machine, with no part of remote_trainer.
"""
