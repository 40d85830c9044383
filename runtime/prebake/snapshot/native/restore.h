#ifndef PREBAKE_RESTORE_H
#define PREBAKE_RESTORE_H

#include "table.h"

struct attempt {
    const struct table *table; /* checked, at TABLE_AT */
    struct handover *handover; /* at HANDOVER_AT */
    int image;                 /* memory.img, opened and checked */
    int stubs;                 /* do not move the vDSO, even if it is the same */
    int rehearsal;             /* have the kernel read no more of memory.img than the pages that are touched */
};

/* In a child process: become the process of the snapshot. Does not return; if it can't, writes why to the handover's
 * report and ends. */
_Noreturn void restore(const struct attempt *attempt);

/* Write up to three texts to `file` as one, and end the process. */
_Noreturn void give_up(int file, const char *first, const char *second, const char *third);

uint64_t now(void); /* nanoseconds of CLOCK_MONOTONIC */

#endif
