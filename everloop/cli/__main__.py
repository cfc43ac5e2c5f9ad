from everloop.cli import main

main()
