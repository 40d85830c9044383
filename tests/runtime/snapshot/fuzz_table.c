/* fuzz_table SEED_FILE ROUNDS: mutates a sound table in every place and at random, and has `check_table` look at each
 * mutation in a block of its exact size, so that a sanitizer sees each byte that is read outside it. What is accepted is
 * then walked through as the restorer does. Prints how many were accepted and refused. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "table.h"

#include "system.h"

static uint64_t state = 0x9e3779b97f4a7c15;

static uint64_t random64(void) {
    state ^= state << 13, state ^= state >> 7, state ^= state << 17;
    return state;
}

static uint64_t walked; /* keeps the compiler from leaving the walk out */

static void walk(const struct table *t) {
    const char *base = (const char *)t, *text = base + t->text.offset;
    const struct mapping *m = (const struct mapping *)(base + t->mappings.offset);
    const struct file *f = (const struct file *)(base + t->files.offset);
    for (uint32_t i = 0; i < t->mappings.count; i++) {
        walked += m[i].start + m[i].bytes + m[i].offset;
        if (m[i].file < MEMORY_IMG) walked += f[m[i].file].head;
        if (m[i].start < LOW_END || m[i].start + m[i].bytes > HIGH_END) abort();
    }
    for (uint32_t i = 0; i < t->files.count; i++) walked += strlen(text + f[i].path);
    const struct entry *e = (const struct entry *)(base + t->entries.offset);
    for (uint32_t i = 0; i < t->entries.count; i++) walked += e[i].call;
    const uint32_t *bound = (const uint32_t *)(base + t->bound.offset), *names = (const uint32_t *)(base + t->names.offset);
    for (uint32_t i = 0; i < t->bound.count; i++) walked += strlen(text + bound[i]);
    for (uint32_t i = 0; i < t->names.count; i++) walked += strlen(text + names[i]);
    const struct reading *r = (const struct reading *)(base + t->readings.offset);
    for (uint32_t i = 0; i < t->readings.count; i++) walked += r[i].file == MEMORY_IMG ? r[i].offset : f[r[i].file].path;
}

static long accepted, refused;

/* Checks a copy whose length and checksum are made to fit, so that the checks behind them are reached. */
static void look(const unsigned char *table, size_t bytes, int fitting) {
    unsigned char *copied = malloc(bytes ? bytes : 1);
    memcpy(copied, table, bytes);
    if (fitting && bytes >= offsetof(struct table, id)) {
        uint64_t size = bytes;
        memcpy(copied + offsetof(struct table, bytes), &size, 8);
        uint64_t sum = checksum(copied + offsetof(struct table, id), bytes - offsetof(struct table, id));
        memcpy(copied + offsetof(struct table, checksum), &sum, 8);
    }
    const char *wrong = check_table(copied, bytes);
    if (wrong && !*wrong) abort();
    if (!wrong) walk((const struct table *)copied);
    wrong ? refused++ : accepted++;
    free(copied);
}

static const uint64_t VALUES[] = {0, 1, 7, 8, 4095, 4096, 0x7fffffff, 0x80000000, 0xfffffffe, 0xffffffff, LOW_END,
                                  HIGH_END, 1UL << 47, 1UL << 63, ~0UL, ~0UL - 4095};

int main(int argc, char **argv) {
    static unsigned char seed[1 << 20], mutated[1 << 20];
    FILE *file = argc == 3 ? fopen(argv[1], "rb") : NULL;
    if (!file) return 2;
    size_t bytes = fread(seed, 1, sizeof seed, file);
    fclose(file);
    look(seed, bytes, 0);
    if (accepted != 1) return 3;
    for (size_t cut = 0; cut <= bytes; cut++) look(seed, cut, 0), look(seed, cut, 1);
    for (size_t at = 0; at + 8 <= bytes; at += 4)
        for (size_t v = 0; v < sizeof VALUES / sizeof *VALUES; v++)
            for (size_t width = 2; width <= 8; width *= 2) {
                memcpy(mutated, seed, bytes);
                memcpy(mutated + at, &VALUES[v], width);
                look(mutated, bytes, 1);
            }
    for (long round = atol(argv[2]); round > 0; round--) {
        memcpy(mutated, seed, bytes);
        for (uint64_t n = 1 + random64() % 4; n; n--) {
            size_t at = random64() % (bytes - 8);
            uint64_t value = random64() & 1 ? VALUES[random64() % (sizeof VALUES / sizeof *VALUES)] : random64();
            memcpy(mutated + at, &value, 1UL << random64() % 4);
        }
        look(mutated, random64() % 8 ? bytes : random64() % (bytes + 1), random64() % 16 != 0);
    }
    printf("%ld accepted, %ld refused\n", accepted, refused);
    return walked == 1;
}
