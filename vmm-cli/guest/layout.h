/* Addresses and selectors that the C and the assembly have to agree on. */
#pragma once

/* Global descriptor table: a 64-bit code segment and a flat data segment. */
#define CODE_SELECTOR 0x08
#define DATA_SELECTOR 0x10

/*
 * Where APs start: the vector of a SIPI is a page number below 1 MiB (Intel SDM vol. 3, "MP Initialization
 * Example"). The loader's structures may have been here: what the guest needs of them is read before.
 */
#define TRAMPOLINE 0x8000
