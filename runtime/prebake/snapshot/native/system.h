/* System calls of x86-64 Linux without a C library, and the few helpers that the compiler expects. */
#ifndef PREBAKE_SYSTEM_H
#define PREBAKE_SYSTEM_H

#if !defined(__x86_64__) || !defined(__linux__)
#error "snapshots exist for x86-64 Linux only"
#endif

#include <stddef.h>
#include <stdint.h>

#define PAGE 4096UL

enum {
    SYS_read = 0, SYS_write = 1, SYS_open = 2, SYS_close = 3, SYS_stat = 4, SYS_fstat = 5, SYS_mmap = 9, SYS_mprotect = 10,
    SYS_munmap = 11, SYS_rt_sigaction = 13, SYS_rt_sigprocmask = 14, SYS_pread64 = 17, SYS_mremap = 25, SYS_madvise = 28, SYS_getpid = 39,
    SYS_fork = 57, SYS_execve = 59, SYS_wait4 = 61, SYS_kill = 62, SYS_getppid = 110, SYS_rt_sigtimedwait = 128,
    SYS_sigaltstack = 131, SYS_prctl = 157, SYS_arch_prctl = 158, SYS_gettid = 186, SYS_readahead = 187, SYS_set_tid_address = 218,
    SYS_clock_gettime = 228, SYS_exit_group = 231, SYS_set_robust_list = 273, SYS_get_robust_list = 274, SYS_pipe2 = 293,
    SYS_rseq = 334,
};

enum { PROT_READ = 1, PROT_WRITE = 2, PROT_EXEC = 4 };
enum { MAP_SHARED = 1, MAP_PRIVATE = 2, MAP_FIXED = 0x10, MAP_ANONYMOUS = 0x20, MAP_NORESERVE = 0x4000 };
enum { MADV_RANDOM = 1 };
enum { MREMAP_MAYMOVE = 1, MREMAP_FIXED = 2 };
enum { O_RDONLY = 0, O_NONBLOCK = 04000, O_CLOEXEC = 02000000 };
enum { SIGHUP = 1, SIGKILL = 9, SIGCHLD = 17, SIGSTOP = 19, LAST_SIGNAL = 64 };

static inline long call6(long number, long a, long b, long c, long d, long e, long f) {
    long result;
    register long r10 __asm__("r10") = d;
    register long r8 __asm__("r8") = e;
    register long r9 __asm__("r9") = f;
    __asm__ volatile("syscall"
                     : "=a"(result)
                     : "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
                     : "rcx", "r11", "memory");
    return result;
}
#define call0(n) call6(n, 0, 0, 0, 0, 0, 0)
#define call1(n, a) call6(n, (long)(a), 0, 0, 0, 0, 0)
#define call2(n, a, b) call6(n, (long)(a), (long)(b), 0, 0, 0, 0)
#define call3(n, a, b, c) call6(n, (long)(a), (long)(b), (long)(c), 0, 0, 0)
#define call4(n, a, b, c, d) call6(n, (long)(a), (long)(b), (long)(c), (long)(d), 0, 0)
#define call5(n, a, b, c, d, e) call6(n, (long)(a), (long)(b), (long)(c), (long)(d), (long)(e), 0)

struct status { /* struct stat of the kernel */
    uint64_t before[6], bytes, between[4], modified, nanoseconds, after[5];
};
_Static_assert(sizeof(struct status) == 144, "the kernel writes 144 bytes");

/* The kernel returns -4095 to -1 for errors; addresses and counts are outside that range. */
static inline int failed(long result) { return (unsigned long)result > -4096UL; }

static inline long map(uint64_t at, uint64_t bytes, int protection, int flags, int file, uint64_t offset) {
    return call6(SYS_mmap, (long)at, (long)bytes, protection, flags, file, (long)offset);
}

static inline size_t length(const char *text) {
    size_t n = 0;
    while (text[n]) n++;
    return n;
}

static inline int equal(const void *a, const void *b, size_t n) {
    const unsigned char *x = a, *y = b;
    for (size_t i = 0; i < n; i++)
        if (x[i] != y[i]) return 0;
    return 1;
}

static inline void copy(void *to, const void *from, size_t n) {
    __asm__ volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(n) : : "memory");
}

static inline void clear(void *at, size_t n) {
    __asm__ volatile("rep stosb" : "+D"(at), "+c"(n) : "a"(0) : "memory");
}

/* A checksum against accidents, not against attackers: eight bytes at a time, FNV-1a's constants. The last bytes are
 * padded with zeros. `prebake.snapshot.table.checksum` computes the same. */
static inline uint64_t checksum(const void *data, size_t n) {
    const unsigned char *bytes = data;
    uint64_t sum = 0xcbf29ce484222325UL ^ n;
    while (n) {
        uint64_t word = 0;
        size_t take = n < 8 ? n : 8;
        if (take == 8)
            __builtin_memcpy(&word, bytes, 8);
        else
            copy(&word, bytes, take);
        sum = (sum ^ word) * 0x100000001b3UL;
        sum ^= sum >> 29;
        bytes += take, n -= take;
    }
    return sum;
}

#endif
