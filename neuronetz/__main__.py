"""``python -m neuronetz`` is the console script."""

from neuronetz.cli import main

if __name__ == "__main__":
    main()
