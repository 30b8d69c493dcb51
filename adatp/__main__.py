import sys

from adatp.cli import main

sys.exit(main())
