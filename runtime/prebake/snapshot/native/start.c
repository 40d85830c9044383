/* prebake-restore SNAPSHOT COMMAND [ARGUMENT…]
 *
 * Restores the snapshot in a child process and stays its supervisor: forwards signals, reaps, ends with its status.
 * Where the snapshot can't be restored, executes COMMAND instead, with the reason in PREBAKE_SNAPSHOT_REFUSED. COMMAND
 * must be a path. The restored process gets COMMAND and the arguments as its own, and this environment.
 *
 * prebake-restore --check SNAPSHOT tells whether the files are sound and fit this machine, and restores nothing. */
#include "ahead.h"
#include "restore.h"
#include "system.h"

enum { PR_SET_PDEATHSIG = 1, SIG_SETMASK = 2, WNOHANG = 1, SI_KERNEL = 0x80, REASON = 512, NAME = 4096 };
enum { EINTR = 4, EAGAIN = 11, KILLS = 1 << 4 | 1 << 6 | 1 << 7 | 1 << 8 | 1 << SIGKILL | 1 << 11 }; /* ILL ABRT BUS FPE SEGV */

#define VARIABLE "PREBAKE_SNAPSHOT_REFUSED="

static char reason[REASON] = VARIABLE;
static const char *const prefix_of_messages = "prebake: ";

uint64_t now(void) {
    struct { int64_t seconds, nanoseconds; } t;
    call2(SYS_clock_gettime, 1, &t);
    return (uint64_t)t.seconds * 1000000000U + (uint64_t)t.nanoseconds;
}

static size_t append(char *to, size_t used, size_t room, const char *text) {
    while (*text && used + 1 < room) to[used++] = *text++;
    to[used] = 0;
    return used;
}

static void say(int file, const char *first, const char *second, const char *third) {
    static char line[REASON];
    size_t used = append(line, 0, sizeof line, first);
    used = append(line, used, sizeof line, second);
    used = append(line, used, sizeof line, third);
    call3(SYS_write, file, line, used);
}

_Noreturn void give_up(int file, const char *first, const char *second, const char *third) {
    say(file, first, second, third);
    for (;;) call1(SYS_exit_group, 125);
}

static const char *because(const char *first, const char *second, const char *third) {
    size_t used = append(reason, sizeof VARIABLE - 1, REASON, first);
    used = append(reason, used, REASON, second);
    append(reason, used, REASON, third);
    return reason;
}

static const char *variable(char **environment, const char *name) {
    size_t n = length(name);
    for (; *environment; environment++)
        if (equal(*environment, name, n) && (*environment)[n] == '=') return *environment + n + 1;
    return NULL;
}

static long open_in(const char *folder, const char *name) {
    static char path[NAME];
    size_t used = append(path, 0, sizeof path, folder);
    append(path, append(path, used, sizeof path, "/"), sizeof path, name);
    return call3(SYS_open, path, O_RDONLY | O_CLOEXEC, 0);
}

static int64_t size_of(int file) {
    struct status found;
    return failed(call2(SYS_fstat, file, &found)) ? -1 : (int64_t)found.bytes;
}

static const char *open_snapshot(const char *folder, struct attempt *attempt) {
    long file = open_in(folder, "table");
    if (failed(file)) return because("there is no ", folder, "/table");
    int64_t bytes = size_of((int)file);
    if (bytes <= 0 || bytes > (int64_t)TABLE_LIMIT) return because(folder, "/table: ", "its size is not that of a table");
    long at = map(TABLE_AT, (uint64_t)bytes, PROT_READ, MAP_PRIVATE | MAP_FIXED, (int)file, 0);
    call1(SYS_close, file);
    if ((uint64_t)at != TABLE_AT) return because(folder, "/table", " can't be mapped");
    attempt->table = (const struct table *)at;
    const char *wrong = check_table(attempt->table, (uint64_t)bytes);
    if (wrong) return because(folder, "/table: ", wrong);
    long image = open_in(folder, "memory.img");
    if (failed(image)) return because("there is no ", folder, "/memory.img");
    attempt->image = (int)image;
    if (size_of(attempt->image) != (int64_t)attempt->table->image_bytes)
        return because(folder, "/memory.img", " has another size than its table says");
    char id[16];
    if (call4(SYS_pread64, image, id, sizeof id, 0) != sizeof id || !equal(id, attempt->table->id, sizeof id))
        return because(folder, "/memory.img", " belongs to another table");
    return NULL;
}

static const char *check_processor(const struct table *t) {
    static char text[] = "00: 00000000";
    uint32_t words[CPU_WORDS];
    cpu_words(words);
    for (unsigned i = 0; i < CPU_WORDS; i++) {
        uint32_t missing = t->cpu[i] & ~words[i];
        if (!missing) continue;
        text[0] = (char)('0' + i / 10), text[1] = (char)('0' + i % 10);
        for (int digit = 0; digit < 8; digit++) text[4 + digit] = "0123456789abcdef"[missing >> (28 - 4 * digit) & 15];
        return because("this processor lacks features that the snapshot uses (word ", text, ")");
    }
    return NULL;
}

static int matches(const char *name, const char *pattern) {
    size_t n = 0;
    while (pattern[n] && pattern[n] != '*' && pattern[n] == name[n]) n++;
    return pattern[n] == '*' || (!pattern[n] && name[n] == '=');
}

static const char *check_environment(const struct table *t, char **environment) {
    static char name[128];
    const char *base = (const char *)t, *text = base + t->text.offset;
    const uint32_t *bound = (const uint32_t *)(base + t->bound.offset), *names = (const uint32_t *)(base + t->names.offset);
    for (uint32_t i = 0; i < t->bound.count; i++) {
        const char *wanted = text + bound[i];
        size_t n = 0;
        while (wanted[n] && wanted[n] != '=' && n + 1 < sizeof name) name[n] = wanted[n], n++;
        name[n] = 0;
        const char *found = variable(environment, name);
        const char *value = wanted + n + (wanted[n] == '=');
        if (!found) return because(name, " is not set, as it was", " for the snapshot");
        if (length(found) != length(value) || !equal(found, value, length(value)))
            return because(name, " has another value than", " for the snapshot");
    }
    for (; *environment; environment++)
        for (uint32_t i = 0; i < t->names.count; i++) {
            const char *pattern = text + names[i];
            if (*pattern == '-' && matches(*environment, pattern + 1)) break; /* the first pattern that matches decides */
            if (!matches(*environment, pattern)) continue;
            size_t n = 0;
            while ((*environment)[n] && (*environment)[n] != '=' && n + 1 < sizeof name) name[n] = (*environment)[n], n++;
            name[n] = 0;
            uint32_t known = 0;
            while (known < t->bound.count && !(equal(text + bound[known], name, n) && text[bound[known] + n] == '=')) known++;
            if (known == t->bound.count) return because(name, " is set, which it was not", " for the snapshot");
        }
    return NULL;
}

/* Arguments and environment, where the restored process finds them */
static const char *hand_over(struct attempt *attempt, int argc, char **arguments, char **environment, int report, uint64_t began) {
    uint64_t bytes = sizeof(struct handover);
    uint32_t envc = 0;
    for (int i = 0; i < argc; i++) bytes += length(arguments[i]) + 1;
    for (; environment[envc]; envc++) bytes += length(environment[envc]) + 1;
    if (bytes > HANDOVER_LIMIT) return because("the arguments and the environment are too large", "", "");
    struct handover *h = (struct handover *)HANDOVER_AT;
    if ((uint64_t)map(HANDOVER_AT, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_FIXED | MAP_ANONYMOUS, -1, 0) != HANDOVER_AT)
        return because("there is no memory", "", "");
    *h = (struct handover){.bytes = bytes, .began = began, .checked = now(), .report = report,
                           .argc = (uint32_t)argc, .envc = envc, .text = sizeof *h};
    char *to = (char *)h + h->text;
    for (uint32_t i = 0; i < (uint32_t)argc + envc; i++) {
        const char *from = i < (uint32_t)argc ? arguments[i] : environment[i - (uint32_t)argc];
        size_t n = length(from) + 1;
        copy(to, from, n);
        to += n;
    }
    attempt->handover = h;
    return NULL;
}

struct information { int32_t signal, error, code, unused, process; int32_t rest[27]; };

/* Forward signals and reap until the child has ended; returns its wait status. `sent`: the last signal that was forwarded
 * to it. Signals that a terminal sends reach the child without help. While no signal waits, reads ahead. */
static int supervise(long child, struct ahead *ahead, int *sent) {
    for (int reading = 1, waiting = WNOHANG;;) {
        struct information about;
        uint64_t every = ~0UL, at_once[2] = {0};
        if (reading && !read_ahead(ahead)) {
            call2(SYS_munmap, TABLE_AT, TABLE_LIMIT);
            reading = 0;
        }
        long number = call4(SYS_rt_sigtimedwait, &every, &about, reading ? at_once : 0, 8);
        if (number > 0 && number != SIGCHLD && about.code != SI_KERNEL) {
            call2(SYS_kill, child, number);
            *sent = (int)number;
        }
        if (number < 0 && number != -EAGAIN && number != -EINTR) waiting = 0; /* forbidden: no signal is forwarded */
        if (number != SIGCHLD && waiting) continue;
        int status;
        for (long ended; (ended = call4(SYS_wait4, -1, &status, waiting, 0)) > 0;)
            if (ended == child) return status;
    }
}

static const char *try(const char *folder, int argc, char **arguments, char **environment, uint64_t began) {
    struct attempt attempt = {0};
    const char *wrong = open_snapshot(folder, &attempt);
    if (!wrong) wrong = check_processor(attempt.table);
    if (!wrong) wrong = check_environment(attempt.table, environment);
    if (wrong) return wrong;
    int report[2];
    if (failed(call2(SYS_pipe2, report, O_CLOEXEC | O_NONBLOCK))) return because("there is no pipe", "", "");
    wrong = hand_over(&attempt, argc, arguments, environment, report[1], began);
    if (wrong) return wrong;
    const char *vdso = variable(environment, "PREBAKE_SNAPSHOT_VDSO");
    attempt.stubs = vdso && *vdso == 's';
    attempt.rehearsal = variable(environment, "PREBAKE_SNAPSHOT_REHEARSAL") != NULL;
    uint64_t every = ~0UL, before, as_default[4] = {0};
    call4(SYS_rt_sigaction, SIGCHLD, as_default, 0, 8); /* ignored, it would reap children itself */
    call4(SYS_rt_sigprocmask, SIG_SETMASK, &every, &before, 8);
    struct ahead ahead = {.table = attempt.table, .image = attempt.image, .file = -1};
    if (attempt.rehearsal) ahead.next = attempt.table->readings.count;
    long child = call0(SYS_fork);
    if (child == 0) {
        call2(SYS_prctl, PR_SET_PDEATHSIG, SIGKILL);
        call1(SYS_close, report[0]);
        restore(&attempt);
    }
    call1(SYS_close, report[1]);
    call2(SYS_munmap, HANDOVER_AT, HANDOVER_LIMIT);
    if (failed(child)) {
        call1(SYS_close, attempt.image);
        call4(SYS_rt_sigprocmask, SIG_SETMASK, &before, 0, 8);
        return because("no process can be started", "", "");
    }
    int sent = 0, status = supervise(child, &ahead, &sent), number = status & 0x7f;
    size_t used = sizeof VARIABLE - 1;
    for (long got; used + 1 < REASON && (got = call3(SYS_read, report[0], reason + used, REASON - 1 - used)) > 0;) used += (size_t)got;
    reason[used] = 0;
    int ran = reason[sizeof VARIABLE - 1] == 'R' && used == sizeof VARIABLE;
    char digits[] = {(char)('0' + number / 10), (char)('0' + number % 10), 0}, *shown = digits + (number < 10);
    if (ran && number != sent && number < 32 && KILLS >> number & 1) {
        say(2, prefix_of_messages, "the restored service was killed by signal ", shown);
        say(2, number == SIGKILL ? ", as where the memory limit is reached" : "", "\n", "");
    }
    if (ran || (number && number == sent)) call1(SYS_exit_group, number ? 128 + number : status >> 8 & 0xff);
    call4(SYS_rt_sigprocmask, SIG_SETMASK, &before, 0, 8);
    call1(SYS_close, report[0]);
    if (used == sizeof VARIABLE - 1)
        because("the restored process ended before it was ready", number ? ", by signal " : "", number ? shown : "");
    return reason;
}

static _Noreturn void ordinary(char **arguments, char **environment, const char *why) {
    static char *with_reason[NAME];
    size_t n = 0;
    for (; environment[n] && n + 2 < NAME; n++) with_reason[n] = environment[n];
    if (why) {
        say(2, prefix_of_messages, "the snapshot is not used: ", why + sizeof VARIABLE - 1);
        say(2, "\n", "", "");
        with_reason[n] = reason;
    }
    call3(SYS_execve, arguments[0], arguments, environment[n] ? environment : with_reason);
    say(2, prefix_of_messages, arguments[0], ": can't be executed\n");
    for (;;) call1(SYS_exit_group, 127);
}

static int check(const char *folder) {
    struct attempt attempt = {0};
    const char *wrong = open_snapshot(folder, &attempt);
    if (!wrong) wrong = check_processor(attempt.table);
    if (wrong) say(2, prefix_of_messages, wrong + sizeof VARIABLE - 1, "\n");
    return wrong ? 1 : 0;
}

__attribute__((used)) static _Noreturn void begin(long *from_kernel) {
    uint64_t began = now();
    int argc = (int)from_kernel[0];
    char **arguments = (char **)(from_kernel + 1), **environment = arguments + argc + 1;
    if (argc == 3 && length(arguments[1]) == 7 && equal(arguments[1], "--check", 7)) {
        int code = check(arguments[2]);
        for (;;) call1(SYS_exit_group, code);
    }
    if (argc < 3) give_up(2, "usage: prebake-restore SNAPSHOT COMMAND [ARGUMENT…]\n", "", "");
    const char *wanted = variable(environment, "PREBAKE_SNAPSHOT");
    const char *why = wanted && equal(wanted, "0", 2) ? NULL : try(arguments[1], argc - 2, arguments + 2, environment, began);
    ordinary(arguments + 2, environment, why);
}

__asm__(".text\n.globl _start\n_start:\n  mov %rsp, %rdi\n  and $-16, %rsp\n  call begin\n");
