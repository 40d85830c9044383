/* Checks every offset, count and address of a table before anything uses them. */
#include "table.h"

#include "system.h"

static int section_fits(const struct table *t, struct section s, uint64_t size) {
    return s.offset % 8 == 0 && s.offset >= sizeof *t && s.offset <= t->bytes && s.count <= (t->bytes - s.offset) / size;
}

static const char *text_ends(const struct table *t, uint32_t offset) {
    return offset < t->text.count ? (const char *)t + t->text.offset + offset : NULL;
}

static const char *check_mapping(const struct table *t, const struct mapping *m, uint64_t after) {
    if (m->start % PAGE || m->bytes % PAGE || m->offset % PAGE || !m->bytes) return "a mapping is not aligned to pages";
    if (m->start < after || m->bytes > HIGH_END || m->start > HIGH_END - m->bytes)
        return "a mapping overlaps another, or lies outside the address space";
    if (m->protection > 7 || m->kind > SHARED) return "a mapping has an unknown kind or protection";
    if (m->kind == COPIED && m->file != MEMORY_IMG) return "a mapping copies from something other than memory.img";
    if (m->kind == SHARED && (m->file >= t->files.count || m->protection & PROT_WRITE))
        return "a shared mapping is writable, or has no file";
    if (m->file == MEMORY_IMG) {
        if (m->offset < PAGE || m->offset > t->image_bytes || m->bytes > t->image_bytes - m->offset)
            return "a mapping lies outside memory.img";
    } else if (m->file != NO_FILE) {
        if (m->file >= t->files.count) return "a mapping names a file that is not in the table";
        if (m->offset > HIGH_END) return "a mapping lies outside its file"; /* its end may: the loader maps so too */
    }
    return NULL;
}

static const char *check_readings(const struct table *t) {
    const struct reading *r = (const struct reading *)((const char *)t + t->readings.offset);
    for (uint32_t i = 0; i < t->readings.count; i++) {
        if (r[i].file != MEMORY_IMG && r[i].file >= t->files.count) return "it reads ahead a file that is not in the table";
        if (r[i].offset % PAGE || !r[i].bytes || r[i].offset > HIGH_END || r[i].bytes > READ_AHEAD_LIMIT)
            return "it reads ahead outside a file, or too much";
    }
    return NULL;
}

static int is_mapped(const struct table *t, uint64_t at, uint16_t protection) {
    const struct mapping *m = (const struct mapping *)((const char *)t + t->mappings.offset);
    for (uint32_t i = 0; i < t->mappings.count; i++)
        if (at >= m[i].start && at - m[i].start < m[i].bytes) return (m[i].protection & protection) == protection;
    return 0;
}

static const char *check_vdso(const struct table *t) {
    if (t->vvar_start % PAGE || t->vdso_start % PAGE || t->vdso_end % PAGE || t->vvar_start < LOW_END ||
        t->vdso_start < t->vvar_start || t->vdso_end <= t->vdso_start || t->vdso_end > HIGH_END ||
        t->vdso_end - t->vvar_start > PARKED_LIMIT)
        return "the vDSO lies outside the address space";
    const struct mapping *m = (const struct mapping *)((const char *)t + t->mappings.offset);
    for (uint32_t i = 0; i < t->mappings.count; i++)
        if (m[i].start < t->vdso_end && t->vvar_start < m[i].start + m[i].bytes) return "a mapping overlaps the vDSO";
    const struct entry *e = (const struct entry *)((const char *)t + t->entries.offset);
    for (uint32_t i = 0; i < t->entries.count; i++)
        if (e[i].offset > t->vdso_end - t->vdso_start - 16 || e[i].call > 1000)
            return "a function lies outside the vDSO";
    return NULL;
}

static const char *check_strings(const struct table *t) {
    const char *text = (const char *)t + t->text.offset;
    if (!t->text.count || text[t->text.count - 1]) return "its text does not end";
    const struct file *f = (const struct file *)((const char *)t + t->files.offset);
    for (uint32_t i = 0; i < t->files.count; i++) {
        const char *path = text_ends(t, f[i].path);
        if (!path || *path != '/') return "a file has no absolute path";
        if (f[i].bytes > HIGH_END) return "a file is too large";
    }
    const struct section lists[] = {t->bound, t->names};
    for (int list = 0; list < 2; list++) {
        const uint32_t *offsets = (const uint32_t *)((const char *)t + lists[list].offset);
        for (uint32_t i = 0; i < lists[list].count; i++)
            if (!text_ends(t, offsets[i])) return "a variable lies outside its text";
    }
    return NULL;
}

const char *check_table(const void *data, uint64_t bytes) {
    const struct table *t = data;
    if (bytes < sizeof t->magic || !equal(t->magic, TABLE_MAGIC, sizeof t->magic)) return "it is not a snapshot's table";
    if (bytes < offsetof(struct table, bytes)) return "it is truncated";
    if (t->version != TABLE_VERSION) return "its format has another version";
    if (bytes < sizeof *t || t->header_bytes != sizeof *t || t->bytes != bytes) return "it is truncated";
    if (bytes > TABLE_LIMIT) return "it is too large";
    size_t summed = offsetof(struct table, id);
    if (checksum(t->id, bytes - summed) != t->checksum) return "its checksum differs: it is damaged";
    if (!section_fits(t, t->mappings, sizeof(struct mapping)) || !section_fits(t, t->files, sizeof(struct file)) ||
        !section_fits(t, t->entries, sizeof(struct entry)) || !section_fits(t, t->bound, 4) ||
        !section_fits(t, t->names, 4) || !section_fits(t, t->readings, sizeof(struct reading)) ||
        !section_fits(t, t->text, 1))
        return "a section lies outside it";
    if (t->image_bytes < PAGE || t->image_bytes % PAGE || t->image_bytes > HIGH_END) return "memory.img has no valid size";
    const char *wrong = check_strings(t);
    const struct mapping *m = (const struct mapping *)((const char *)t + t->mappings.offset);
    uint64_t after = LOW_END;
    for (uint32_t i = 0; !wrong && i < t->mappings.count; i++) {
        wrong = check_mapping(t, m + i, after);
        after = m[i].start + m[i].bytes;
    }
    if (!wrong) wrong = check_vdso(t);
    if (!wrong) wrong = check_readings(t);
    if (!wrong && !is_mapped(t, t->resume, PROT_READ | PROT_EXEC)) wrong = "the process has no code to go on with";
    if (!wrong && !is_mapped(t, t->frame, PROT_READ | PROT_WRITE)) wrong = "the process has no frame to go on with";
    return wrong;
}
