/* The table of a snapshot: what is mapped where. Little endian, fixed-size records; docs/snapshot.md describes it.
 * `prebake/snapshot/table.py` writes it. Whoever reads it calls `check_table` first and trusts nothing before. */
#ifndef PREBAKE_TABLE_H
#define PREBAKE_TABLE_H

#include <stddef.h>
#include <stdint.h>

#include "cpu.h"

#define TABLE_MAGIC "PBSNAP\r\n"
#define TABLE_VERSION 2

/* The addresses below LOW_END belong to the restorer: no snapshot has a mapping there. */
#define RESTORER 0x100000UL
#define TABLE_AT 0x140000UL
#define TABLE_LIMIT 0x100000UL
#define HANDOVER_AT 0x240000UL
#define HANDOVER_LIMIT 0x180000UL
#define PARKED 0x3c0000UL /* the vDSO, while everything above is unmapped */
#define PARKED_LIMIT 0x40000UL
#define LOW_END 0x400000UL
#define HIGH_END 0x7ffffffff000UL /* the end of the address space of x86-64, without its last page */

#define READ_AHEAD_LIMIT 0x40000000UL /* bytes of one record */

#define NO_FILE 0xffffffffU    /* anonymous memory */
#define MEMORY_IMG 0xfffffffeU /* the snapshot's own file */

enum { MAPPED = 0, COPIED = 1, SHARED = 2 }; /* how a mapping gets its contents */

struct section { uint32_t offset, count; };

struct mapping {
    uint64_t start, bytes, offset;
    uint32_t file; /* index into files, or NO_FILE, MEMORY_IMG */
    uint16_t protection, kind;
};

struct file {
    uint64_t bytes, head; /* size, checksum of the first page; 0: not read */
    int64_t seconds;      /* modification time */
    uint32_t nanoseconds, path;
};

struct reading { /* what is read ahead where it is not in the page cache, in this order */
    uint64_t offset, bytes;
    uint32_t file, unused; /* index into files, or MEMORY_IMG */
};

struct entry { uint32_t offset, call; }; /* a function of the vDSO: where in it, and the system call that does the same */

struct memory_map { /* struct prctl_mm_map without auxv and exe_fd */
    uint64_t start_code, end_code, start_data, end_data, start_brk, brk, start_stack, arg_start, arg_end, env_start,
        env_end;
};

struct table {
    char magic[8];
    uint32_t version, header_bytes;
    uint64_t bytes;    /* of the whole table */
    uint64_t checksum; /* of everything after this field */
    char id[16];       /* the same as in the first page of memory.img */
    uint64_t image_bytes;
    uint64_t resume, frame; /* where the process goes on, and its argument */
    uint64_t vvar_start, vdso_start, vdso_end, vdso_checksum;
    struct memory_map memory;
    uint32_t cpu[CPU_WORDS];
    struct section mappings, files, entries;
    struct section bound; /* offsets of strings "NAME=VALUE": variables that the state depends on */
    struct section names; /* offsets of strings "NAME", "PREFIX*", or an exemption "-NAME": others of these must be absent */
    struct section readings;
    struct section text;  /* zero-terminated strings; count is the number of bytes */
};

struct handover { /* from the restorer to the restored process */
    uint64_t bytes, began, checked, mapped, jumped; /* nanoseconds of CLOCK_MONOTONIC */
    int32_t report;                                 /* a pipe: 'R', or why not */
    uint32_t argc, envc, vdso;                      /* vdso: 1 moved, 0 replaced by stubs */
    uint64_t text; /* offset of the strings: the restored process's arguments, then its environment */
};

/* NULL if the table is sound, else what is wrong with it. Reads nothing outside the `bytes` bytes. */
const char *check_table(const void *data, uint64_t bytes);

#endif
