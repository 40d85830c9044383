/* The library in the process that is dumped: it stops the process, and is where the restored process goes on.
 *
 * What the kernel knows of a thread and does not keep in memory is read before the stop into `frame`, which is memory and
 * so part of the dump, and told to the kernel again afterwards. The restorer therefore knows only mappings. */
#include "system.h"
#include "table.h"

#define VISIBLE __attribute__((visibility("default")))

struct action { uint64_t handler, flags, restorer, mask; };
struct stack { uint64_t start; int32_t flags; uint64_t bytes; };

struct frame {
    uint64_t rbx, rbp, r12, r13, r14, r15, rsp; /* the offsets stand in the assembler below */
    uint32_t mxcsr, x87;
    uint64_t fs, gs, tid_address, robust, robust_bytes, rseq, mask;
    uint32_t rseq_bytes;
    struct stack alternate;
    struct action actions[LAST_SIGNAL + 1];
    uint64_t permitted;
};

__attribute__((visibility("hidden"))) struct frame prebake_frame;

enum { ARCH_SET_GS = 0x1001, ARCH_SET_FS = 0x1002, ARCH_GET_FS = 0x1003, ARCH_GET_GS = 0x1004 };
/* AMX must be asked for before its first use, and libraries do so once (Documentation/arch/x86/xstate.rst) */
enum { ARCH_GET_XCOMP_PERM = 0x1022, ARCH_REQ_XCOMP_PERM = 0x1023, AMX = 18 };
enum { PR_GET_TID_ADDRESS = 40, SIG_SETMASK = 2, RSEQ_UNREGISTER = 1, RSEQ_SIGNATURE = 0x53053053 };

/* long prebake_pause(uint64_t rseq, uint32_t rseq_bytes): -errno if the process cannot be dumped, 0 if it goes on without
 * a restore, else (in the restored process) the address of the handover.
 * prebake_resume(frame, handover): the restorer jumps here. */
__asm__(".text\n"
        ".globl prebake_pause\n.type prebake_pause, @function\nprebake_pause:\n"
        "  mov %rsi, %rdx\n  mov %rdi, %rsi\n  lea prebake_frame(%rip), %rdi\n"
        "  mov %rbx, 0(%rdi)\n  mov %rbp, 8(%rdi)\n  mov %r12, 16(%rdi)\n  mov %r13, 24(%rdi)\n"
        "  mov %r14, 32(%rdi)\n  mov %r15, 40(%rdi)\n  mov %rsp, 48(%rdi)\n  stmxcsr 56(%rdi)\n  fnstcw 60(%rdi)\n"
        "  sub $8, %rsp\n  call before_stop\n  add $8, %rsp\n  ret\n"
        ".globl prebake_resume\n.type prebake_resume, @function\nprebake_resume:\n"
        "  mov 0(%rdi), %rbx\n  mov 8(%rdi), %rbp\n  mov 16(%rdi), %r12\n  mov 24(%rdi), %r13\n"
        "  mov 32(%rdi), %r14\n  mov 40(%rdi), %r15\n  mov 48(%rdi), %rsp\n  ldmxcsr 56(%rdi)\n  fldcw 60(%rdi)\n"
        "  cld\n  sub $8, %rsp\n  call after_restore\n  add $8, %rsp\n  ret\n");

#define KEPT __attribute__((used, visibility("hidden")))

KEPT long before_stop(struct frame *f, uint64_t rseq, uint32_t rseq_bytes) {
    long wrong = call2(SYS_arch_prctl, ARCH_GET_FS, &f->fs);
    if (!wrong) wrong = call2(SYS_arch_prctl, ARCH_GET_GS, &f->gs);
    if (!wrong) wrong = call2(SYS_prctl, PR_GET_TID_ADDRESS, &f->tid_address);
    if (!wrong && (!f->tid_address || *(int32_t *)f->tid_address != call0(SYS_gettid)))
        wrong = -3; /* ESRCH: the C library keeps this thread's number elsewhere */
    if (!wrong) wrong = call3(SYS_get_robust_list, 0, &f->robust, &f->robust_bytes);
    if (!wrong) wrong = call2(SYS_sigaltstack, 0, &f->alternate);
    for (int s = 1; !wrong && s <= LAST_SIGNAL; s++) wrong = call4(SYS_rt_sigaction, s, 0, &f->actions[s], 8);
    if (!wrong) wrong = call4(SYS_rt_sigprocmask, SIG_SETMASK, 0, &f->mask, 8);
    f->rseq = rseq, f->rseq_bytes = rseq_bytes;
    if (call2(SYS_arch_prctl, ARCH_GET_XCOMP_PERM, &f->permitted)) f->permitted = 0; /* kernels before 5.16 have no AMX */
    if (!wrong && rseq) wrong = call4(SYS_rseq, rseq, rseq_bytes, RSEQ_UNREGISTER, RSEQ_SIGNATURE);
    if (!wrong) wrong = call2(SYS_kill, call0(SYS_getpid), SIGSTOP);
    return wrong;
}

KEPT uint64_t after_restore(struct frame *f, uint64_t handover) {
    call2(SYS_arch_prctl, ARCH_SET_FS, f->fs);
    if (f->gs) call2(SYS_arch_prctl, ARCH_SET_GS, f->gs);
    *(int32_t *)f->tid_address = (int32_t)call1(SYS_set_tid_address, f->tid_address);
    call2(SYS_set_robust_list, f->robust, f->robust_bytes);
    /* without rseq glibc asks the kernel for the processor's number: no failure matters */
    if (f->rseq) call4(SYS_rseq, f->rseq, f->rseq_bytes, 0, RSEQ_SIGNATURE);
    call2(SYS_sigaltstack, &f->alternate, 0);
    /* 0 ends the process, and the service starts the ordinary way */
    if (f->permitted >> AMX & 1 && call2(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, AMX)) handover = 0;
    for (int s = 1; s <= LAST_SIGNAL; s++)
        if (s != SIGKILL && s != SIGSTOP) call4(SYS_rt_sigaction, s, &f->actions[s], 0, 8);
    call4(SYS_rt_sigprocmask, SIG_SETMASK, &f->mask, 0, 8); /* last: signals that came meanwhile are delivered now */
    return handover;
}

VISIBLE struct frame *prebake_frame_address(void) { return &prebake_frame; }
VISIBLE void prebake_cpu(uint32_t words[CPU_WORDS]) { cpu_words(words); }
VISIBLE const char *prebake_check(const void *table, uint64_t bytes) { return check_table(table, bytes); }
VISIBLE uint64_t prebake_checksum(const void *data, uint64_t bytes) { return checksum(data, bytes); }
