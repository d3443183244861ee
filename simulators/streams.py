"""The random streams of who plays. Worlds are begun with the same seed, and those written by others may take any small
number for theirs: a policy that drew with the numbers which decide clicks would not be drawing. (The generator's and
the critic's are production's, [seed, 11] and [seed, 7].)"""

SERVICE_STREAM, BANDIT_STREAM, VOWPAL_STREAM, LANGUAGE_STREAM = 0x5E21, 0xB0B5, 0x7093, 0x1A46
