import sys

from adatp.cli.main import main

sys.exit(main())
