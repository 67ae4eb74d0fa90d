"""`python -m xaihub`."""

from xaihub.cli import main

if __name__ == "__main__":
    main()
