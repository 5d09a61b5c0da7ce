/* The machine: what the boot processor is told about it, printed above the table. */
#pragma once

#include <stdint.h>

/* Keeps what is needed of the PVH structures at `start_info`, before other things take their memory. */
void machine_read(uintptr_t start_info);
void machine_print(void);
