#ifndef PREBAKE_AHEAD_H
#define PREBAKE_AHEAD_H

#include "table.h"

/* Where the read-ahead of a table stands. */
struct ahead {
    const struct table *table;
    uint32_t next; /* index of the reading */
    uint64_t done; /* bytes of it that the kernel was asked for */
    int image;     /* memory.img; -1 after `read_ahead` has closed it */
    int file;      /* the open file of the reading, or -1 */
};

/* Ask the kernel for the next piece of a file, and do not wait for it. False if nothing is left, and then memory.img is
 * closed. Files that cannot be opened are left out: the restore tells what is wrong with them. */
int read_ahead(struct ahead *a);

#endif
