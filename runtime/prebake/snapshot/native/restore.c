/* Turns this process into the one of the snapshot, in seven steps:
 *
 * 1. find the own vDSO, and park it below LOW_END;
 * 2. unmap everything above LOW_END, where the snapshot's memory will be; the restorer stands below, with its stack;
 * 3. map every mapping of the table: files from their paths (each compared with what it was at the dump), dirty pages
 *    from memory.img, and anonymous memory;
 * 4. put the vDSO where the process knows it; if the kernel's is another one, put stubs there that make system calls;
 * 5. tell the kernel where the heap (brk) and the arguments are: glibc would abort if the break were elsewhere;
 * 6. close the files;
 * 7. jump to `prebake_resume` in pause.c, which restores registers, thread pointer and signal handlers.
 *
 * The process may die at any step: the supervisor (start.c) then starts the service the ordinary way. */
#include "restore.h"

#include "system.h"

enum { PR_SET_MM = 35, PR_SET_MM_MAP = 14, PIECES = 8 };

struct piece { uint64_t start, end; int code; };

static struct attempt now_restoring;
static char stack[1 << 16] __attribute__((aligned(16)));
static char listing[1 << 13];
static struct piece pieces[PIECES]; /* the own vDSO and its data, in the order of their addresses */
static int piece_count;
static int open_file = -1;
static uint32_t open_index = NO_FILE;

static _Noreturn void stop(const char *first, const char *second, const char *third) {
    give_up(now_restoring.handover->report, first, second, third);
}

static const char *text(uint32_t offset) {
    const struct table *t = now_restoring.table;
    return (const char *)t + t->text.offset + offset;
}

static uint64_t hexadecimal(const char **at) {
    uint64_t value = 0;
    for (;; ++*at) {
        char c = **at;
        if (c >= '0' && c <= '9')
            value = value << 4 | (uint64_t)(c - '0');
        else if (c >= 'a' && c <= 'f')
            value = value << 4 | (uint64_t)(c - 'a' + 10);
        else
            return value;
    }
}

/* Step 1: lines such as `7ffd1c9f2000-7ffd1c9f4000 r-xp 00000000 00:00 0    [vdso]` */
static void find_vdso(void) {
    long file = call3(SYS_open, "/proc/self/maps", O_RDONLY | O_CLOEXEC, 0);
    if (failed(file)) stop("/proc can't be read", "", "");
    size_t used = 0;
    for (long got; used < sizeof listing - 1 && (got = call3(SYS_read, file, listing + used, sizeof listing - 1 - used)) > 0;)
        used += (size_t)got;
    call1(SYS_close, file);
    for (const char *line = listing; *line && piece_count < PIECES;) {
        struct piece piece = {.start = hexadecimal(&line)};
        if (*line == '-') line++;
        piece.end = hexadecimal(&line);
        const char *name = line;
        while (*name && *name != '\n' && *name != '[') name++;
        piece.code = equal(name, "[vdso", 5);
        if (piece.code || equal(name, "[vvar", 5)) pieces[piece_count++] = piece;
        for (line = name; *line && *line++ != '\n';) {}
    }
}

static int same_vdso(void) {
    const struct table *t = now_restoring.table;
    if (!piece_count || now_restoring.stubs) return 0;
    const struct piece *code = &pieces[piece_count - 1];
    for (int i = 1; i < piece_count; i++)
        if (pieces[i].start != pieces[i - 1].end) return 0;
    return code->code && code->end - pieces[0].start == t->vdso_end - t->vvar_start &&
           code->start - pieces[0].start == t->vdso_start - t->vvar_start &&
           checksum((const void *)code->start, code->end - code->start) == t->vdso_checksum;
}

static int move_vdso(uint64_t from, uint64_t to) {
    for (int i = 0; i < piece_count; i++) {
        uint64_t bytes = pieces[i].end - pieces[i].start, offset = pieces[i].start - pieces[0].start;
        if (failed(call5(SYS_mremap, from + offset, bytes, bytes, MREMAP_MAYMOVE | MREMAP_FIXED, to + offset))) return 0;
    }
    return 1;
}

/* Steps 1 and 2. True if the vDSO is parked. */
static int clear_space(void) {
    const struct table *t = now_restoring.table;
    find_vdso();
    int parked = same_vdso() && move_vdso(pieces[0].start, PARKED);
    /* A vDSO that is not needed goes too; kernels may forbid that (mseal), then it stays if nothing else wants its place. */
    if (!failed(call2(SYS_munmap, LOW_END, HIGH_END - LOW_END))) return parked;
    if (parked || !piece_count) stop("the address space can't be cleared", "", "");
    uint64_t start = pieces[0].start, end = pieces[piece_count - 1].end;
    if (failed(call2(SYS_munmap, LOW_END, start - LOW_END)) || failed(call2(SYS_munmap, end, HIGH_END - end)))
        stop("the address space can't be cleared", "", "");
    const struct mapping *m = (const struct mapping *)((const char *)t + t->mappings.offset);
    for (uint32_t i = 0; i < t->mappings.count; i++)
        if (m[i].start < end && start < m[i].start + m[i].bytes) stop("the kernel's vDSO is in the way", "", "");
    if (t->vvar_start < end && start < t->vdso_end) stop("the kernel's vDSO is in the way", "", "");
    return 0;
}

static void compare(const struct file *expected, int file, const char *path) {
    static char page[PAGE];
    struct status found;
    long wrong = file < 0 ? call2(SYS_stat, path, &found) : call2(SYS_fstat, file, &found);
    if (failed(wrong)) stop(path, " is missing", "");
    if (found.bytes != expected->bytes) stop(path, " has another size", "");
    /* images keep seconds only, the build has the rest too */
    if ((int64_t)found.modified != expected->seconds || (found.nanoseconds && found.nanoseconds != expected->nanoseconds))
        stop(path, " has another modification time", "");
    if (file < 0) return;
    long got = call4(SYS_pread64, file, page, PAGE, 0);
    if (got < 0 || checksum(page, (size_t)got) != expected->head) stop(path, " has another content", "");
}

static int opened(uint32_t index) {
    if (index == open_index) return open_file;
    const struct table *t = now_restoring.table;
    const struct file *file = (const struct file *)((const char *)t + t->files.offset) + index;
    if (open_file >= 0) call1(SYS_close, open_file);
    long got = call3(SYS_open, text(file->path), O_RDONLY | O_CLOEXEC, 0);
    if (failed(got)) stop(text(file->path), " can't be opened", "");
    open_file = (int)got, open_index = index;
    compare(file, open_file, text(file->path));
    return open_file;
}

/* Step 3 */
static void map_all(void) {
    const struct table *t = now_restoring.table;
    const struct file *files = (const struct file *)((const char *)t + t->files.offset);
    for (uint32_t i = 0; i < t->files.count; i++)
        if (!files[i].head) compare(&files[i], -1, text(files[i].path));
    const struct mapping *m = (const struct mapping *)((const char *)t + t->mappings.offset);
    for (; m < (const struct mapping *)((const char *)t + t->mappings.offset) + t->mappings.count; m++) {
        int flags = MAP_FIXED | (m->kind == SHARED ? MAP_SHARED : MAP_PRIVATE), copied = m->kind == COPIED;
        int protection = copied ? PROT_READ | PROT_WRITE : m->protection;
        int file = m->file == MEMORY_IMG ? now_restoring.image : m->file == NO_FILE ? -1 : opened(m->file);
        if (copied || file < 0) file = -1, flags |= MAP_ANONYMOUS | MAP_NORESERVE;
        if ((uint64_t)map(m->start, m->bytes, protection, flags, file, file < 0 ? 0 : m->offset) != m->start)
            stop(m->file < MEMORY_IMG ? text(files[m->file].path) : "memory", " can't be mapped", "");
        if (m->file == MEMORY_IMG && !copied && now_restoring.rehearsal) call3(SYS_madvise, m->start, m->bytes, MADV_RANDOM);
        if (!copied) continue;
        for (uint64_t done = 0; done < m->bytes;) {
            long got = call4(SYS_pread64, now_restoring.image, m->start + done, m->bytes - done, m->offset + done);
            if (got <= 0) stop("memory.img can't be read", "", "");
            done += (uint64_t)got;
        }
        if (protection != m->protection && failed(call3(SYS_mprotect, m->start, m->bytes, m->protection)))
            stop("memory can't be protected", "", "");
    }
}

/* Step 4. A stub is `mov $call, %eax; syscall; ret`: the functions of the vDSO take the system calls' arguments. */
static void replace_vdso(void) {
    const struct table *t = now_restoring.table;
    uint64_t bytes = t->vdso_end - t->vdso_start;
    if (failed(map(t->vdso_start, bytes, PROT_READ | PROT_WRITE, MAP_FIXED | MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)))
        stop("the vDSO can't be replaced", "", "");
    const struct entry *e = (const struct entry *)((const char *)t + t->entries.offset);
    for (uint32_t i = 0; i < t->entries.count; i++) {
        unsigned char stub[8] = {0xb8, e[i].call & 0xff, e[i].call >> 8, 0, 0, 0x0f, 0x05, 0xc3};
        copy((void *)(t->vdso_start + e[i].offset), stub, sizeof stub);
    }
    if (failed(call3(SYS_mprotect, t->vdso_start, bytes, PROT_READ | PROT_EXEC))) stop("the vDSO can't be replaced", "", "");
}

/* Step 5 */
static void tell_kernel(void) {
    struct handover *h = now_restoring.handover;
    struct {
        struct memory_map map;
        uint64_t auxv;
        uint32_t auxv_bytes, exe;
    } told = {now_restoring.table->memory, 0, 0, -1U};
    const char *start = (const char *)h + h->text, *at = start;
    for (uint32_t i = 0; i < h->argc; i++) at += length(at) + 1;
    told.map.arg_start = (uint64_t)start, told.map.arg_end = told.map.env_start = (uint64_t)at;
    told.map.env_end = (uint64_t)h + h->bytes;
    if (failed(call5(SYS_prctl, PR_SET_MM, PR_SET_MM_MAP, &told, sizeof told, 0)))
        stop("the kernel does not let the heap's end be set (prctl PR_SET_MM_MAP)", "", "");
}

__attribute__((used)) static _Noreturn void rebuild(void) {
    const struct table *t = now_restoring.table;
    struct handover *h = now_restoring.handover;
    int parked = clear_space();
    map_all();
    h->mapped = now();
    if (parked && !move_vdso(PARKED, t->vvar_start)) stop("the vDSO can't be moved", "", "");
    if (!parked) replace_vdso();
    h->vdso = (uint32_t)parked;
    tell_kernel();
    if (open_file >= 0) call1(SYS_close, open_file);
    call1(SYS_close, now_restoring.image);
    h->jumped = now();
    __asm__ volatile("jmp *%0" : : "r"(t->resume), "D"(t->frame), "S"(h) : "memory");
    __builtin_unreachable();
}

_Noreturn void restore(const struct attempt *attempt) {
    now_restoring = *attempt;
    __asm__ volatile("mov %0, %%rsp\n  call rebuild" : : "r"(stack + sizeof stack) : "memory");
    __builtin_unreachable();
}
