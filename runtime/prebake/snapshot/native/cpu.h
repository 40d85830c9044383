/* The processor's features that programs use: what a restored process found at its dump must still be there. */
#ifndef PREBAKE_CPU_H
#define PREBAKE_CPU_H

#include <stdint.h>

#define CPU_WORDS 12

/* Leaf, subleaf, register (0 eax … 3 edx), and the bits that decide which instructions programs run. Other bits (virtual
 * machine, timers, power, the speed of string operations: ERMS, FSRM) differ between hosts without any effect. */
static const struct {
    uint32_t leaf, subleaf, reg, mask;
} CPU_WORD[CPU_WORDS] = {
    {1, 0, 2, 0x7ed83203},          /* SSE3 … AVX, F16C, RDRAND, OSXSAVE */
    {1, 0, 3, 0x07888111},          /* SSE, SSE2, CMOV, CX8 */
    {7, 0, 1, 0xfdaf0939},          /* BMI, AVX2, AVX-512, SHA, CLWB */
    {7, 0, 2, 0x1a405f63},          /* VBMI, GFNI, VAES, VNNI, RDPID */
    {7, 0, 3, 0x03c1410c},          /* AMX, AVX512-FP16 */
    {7, 1, 0, 0x00a00030},          /* AVX-VNNI, AVX512-BF16, AMX-FP16, AVX-IFMA */
    {7, 1, 3, 0x00084530},          /* AVX-VNNI-INT8, AVX10 */
    {0xd, 1, 0, 0x00000007},        /* XSAVEOPT, XSAVEC, XGETBV */
    {0x80000001, 0, 2, 0x00218961}, /* LAHF, LZCNT, SSE4A, PREFETCHW, XOP, FMA4 */
    {0x80000001, 0, 3, 0xca400800}, /* SYSCALL, RDTSCP, 64 bit */
    {0x80000008, 0, 1, 0x00000001}, /* CLZERO */
    {0, 0, 4, 0x000600e7},          /* not a leaf: XCR0, the registers that the kernel saves */
};

static inline uint32_t cpu_register(uint32_t leaf, uint32_t subleaf, uint32_t reg) {
    uint32_t r[5];
    __asm__ volatile("cpuid" : "=a"(r[0]), "=b"(r[1]), "=c"(r[2]), "=d"(r[3]) : "a"(leaf & 0x80000000), "c"(0));
    if (leaf > r[0]) return 0;
    __asm__ volatile("cpuid" : "=a"(r[0]), "=b"(r[1]), "=c"(r[2]), "=d"(r[3]) : "a"(leaf), "c"(subleaf));
    return r[reg];
}

static inline void cpu_words(uint32_t words[CPU_WORDS]) {
    for (int i = 0; i < CPU_WORDS; i++) {
        uint32_t value = 0, high;
        if (CPU_WORD[i].reg < 4)
            value = cpu_register(CPU_WORD[i].leaf, CPU_WORD[i].subleaf, CPU_WORD[i].reg);
        else if (words[0] & 1U << 27) /* OSXSAVE: xgetbv exists */
            __asm__ volatile("xgetbv" : "=a"(value), "=d"(high) : "c"(0));
        words[i] = value & CPU_WORD[i].mask;
    }
}

#endif
