"""The CPU engine's kernel: C++ behind a C interface (`maestrale.h`), and how it is compiled."""
