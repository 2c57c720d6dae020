"""Models of the Hugging Face hub, asked about and never fetched: the machine that trains fetches them itself.

    names    what a model is called, and whether a value may be such a name
    files    which of a model's files a training fetches
    client   the hub's answers, over HTTP
    look     is it there, may we have it, which commit is it, how large is what is fetched

Rules for editing: reads only; nothing here knows a job, a tool or a machine. A token goes into one header and nowhere else.
"""
