"""``python -m remote_trainer`` is ``remote-trainer``."""

from remote_trainer.cli.main import main

if __name__ == "__main__":
    main()
