"""``python -m kvrt_cli`` is ``kvrt``."""

from kvrt_cli.main import main

if __name__ == "__main__":
    main()
