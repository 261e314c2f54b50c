"""``python -m mlmrepro`` is the command ``mlmrepro``."""

from mlmrepro.cli import main

if __name__ == "__main__":
    main()
