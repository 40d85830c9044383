/* Reads ahead what the restored process touches first, as a rehearsal in the build recorded it.
 *
 * A cold start would otherwise wait for its disk once for each page fault, and each time the kernel reads what lies around
 * the page. `readahead` only starts a read, and takes microseconds where the pages are in memory already. One call reads
 * no more than the disk's own limit (128 kB is the kernel's default), so ranges are asked for in pieces. */
#include "ahead.h"

#include "system.h"

enum { READ_AHEAD_PIECE = 1 << 17 };

static const struct reading *reading_of(const struct ahead *a) {
    const struct table *t = a->table;
    return (const struct reading *)((const char *)t + t->readings.offset) + a->next;
}

static void open_file(struct ahead *a, uint32_t index) {
    const struct table *t = a->table;
    const struct file *file = (const struct file *)((const char *)t + t->files.offset) + index;
    long got = call3(SYS_open, (const char *)t + t->text.offset + file->path, O_RDONLY | O_CLOEXEC | O_NONBLOCK, 0);
    a->file = failed(got) ? -1 : (int)got;
}

int read_ahead(struct ahead *a) {
    const struct table *t = a->table;
    if (a->next >= t->readings.count) {
        if (a->image >= 0) call1(SYS_close, a->image);
        a->image = -1;
        return 0;
    }
    const struct reading *r = reading_of(a);
    if (r->file != MEMORY_IMG && a->file < 0) open_file(a, r->file);
    int file = r->file == MEMORY_IMG ? a->image : a->file;
    uint64_t left = r->bytes - a->done, piece = left < READ_AHEAD_PIECE ? left : READ_AHEAD_PIECE;
    if (file >= 0) call3(SYS_readahead, file, r->offset + a->done, piece);
    a->done = file < 0 ? r->bytes : a->done + piece;
    if (a->done < r->bytes) return 1;
    int same = a->next + 1 < t->readings.count && r[1].file == r->file;
    if (a->file >= 0 && !same) call1(SYS_close, a->file), a->file = -1;
    a->next++, a->done = 0;
    return 1;
}
