"""How the tagger is trained, alone and with the penalty, and how datasets are scored."""
