from nni_cssnas.cli import main

main()
