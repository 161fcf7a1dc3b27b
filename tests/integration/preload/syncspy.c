/* syncspy: records what a process made durable, so that a test can take away the rest (tests/integration/powerfail.py).
 *
 * Preload it (LD_PRELOAD) with SYNCSPY_DIR naming the record directory, which must lie on the file system of the data,
 * and SYNCSPY_ROOT naming the directory that is watched. Lines of SYNCSPY_DIR/records, each written by one write(), so
 * that a SIGKILL leaves whole lines or one cut line, which the next line's leading newline ends:
 *
 *   W <dev> <ino> <offset> <hex>        about to be overwritten: what the file held there
 *   S <dev> <ino> 0 <token>             an fsync or fdatasync of the file is asked for
 *   F <dev> <ino> <length> <token>      it succeeded: the file's bytes up to there, as of then
 *   D <dev> <ino> {<type><ino> <name>/} fsync of a directory: its names, as of the call's start; type d or f
 *   T <dev> <ino> <length>              the file was truncated to that
 *   X <errno> <path>                    a file that was about to lose its name could not be kept: the record is void
 *
 * A file's last name in the watched directory is kept as SYNCSPY_DIR/keep/<dev>.<ino> before it is removed or replaced:
 * the name may come back, and no inode number is used twice.
 *
 * Only write and pwrite are watched for overwriting: nobody here does it by writev or through a mapping.
 * sync_file_range, msync, sync and syncfs are not counted: nobody here relies on them, and the first two promise little.
 *
 * Of io_submit(2), by `syscall`, only syncs are taken. A thread here does them instead of the kernel, as it does others,
 * and its event is there for io_getevents(2) once the record is.
 *
 * Faults, from the environment or, at any time, from lines KEY=VALUE in SYNCSPY_DIR/control (which then rules alone):
 *   SYNCSPY_DROP=1       syncs do nothing, and say that they succeeded
 *   SYNCSPY_DELAY_MS=n   syncs take n milliseconds longer
 *   SYNCSPY_HANG=1       syncs wait as long as this stands
 *   SYNCSPY_ERROR=n      syncs fail with errno n
 *   SYNCSPY_MATCH=text   all of these only for files whose path contains the text
 *   SYNCSPY_READ_DELAY_MS=n  reads at an offset from files whose name ends in .sst take n milliseconds longer, whatever
 *                        the page cache holds; looked for in SYNCSPY_DIR/control only if it was in the environment too
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/aio_abi.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define REAL(name) ((__typeof__(&name))real(#name))

struct faults {
    int drop, hang, error;
    long delay_ms, read_delay_ms;
    char match[256];
};

static char record_dir[PATH_MAX], root[PATH_MAX];
static int records = -1;
static struct faults given;
static int reads_watched;

static void *real(const char *name) { return dlsym(RTLD_NEXT, name); }

static void set_fault(struct faults *faults, const char *key, const char *value) {
    if (!strcmp(key, "SYNCSPY_DROP")) faults->drop = atoi(value);
    if (!strcmp(key, "SYNCSPY_HANG")) faults->hang = atoi(value);
    if (!strcmp(key, "SYNCSPY_ERROR")) faults->error = atoi(value);
    if (!strcmp(key, "SYNCSPY_DELAY_MS")) faults->delay_ms = atol(value);
    if (!strcmp(key, "SYNCSPY_READ_DELAY_MS")) faults->read_delay_ms = atol(value);
    if (!strcmp(key, "SYNCSPY_MATCH")) snprintf(faults->match, sizeof faults->match, "%s", value);
}

__attribute__((constructor)) static void start(void) {
    static const char *const keys[] = {"SYNCSPY_DROP", "SYNCSPY_HANG", "SYNCSPY_ERROR", "SYNCSPY_DELAY_MS", "SYNCSPY_MATCH",
                                       "SYNCSPY_READ_DELAY_MS"};
    reads_watched = getenv("SYNCSPY_READ_DELAY_MS") != NULL;
    const char *dir = getenv("SYNCSPY_DIR"), *watched = getenv("SYNCSPY_ROOT");
    if (!dir || !watched || !realpath(dir, record_dir) || !realpath(watched, root)) return;
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++)
        if (getenv(keys[i])) set_fault(&given, keys[i], getenv(keys[i]));
    char path[PATH_MAX + 16];
    snprintf(path, sizeof path, "%s/records", record_dir);
    int fd = REAL(open)(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
    records = fcntl(fd, F_DUPFD_CLOEXEC, 200); /* out of the way of whoever counts descriptors */
    close(fd);
}

static void record(const char *text, size_t length) {
    int saved = errno;
    if (records >= 0 && REAL(write)(records, text, length) != (ssize_t)length) abort();
    errno = saved;
}

static void record_number(char kind, const struct stat *file, long long number, const char *token) {
    char line[160];
    int n = snprintf(line, sizeof line, "\n%c %llu %llu %lld%s .\n", kind, (unsigned long long)file->st_dev,
                     (unsigned long long)file->st_ino, number, token);
    record(line, (size_t)n);
}

/* What the file holds where `count` bytes are about to be written at `at`; -1: where the descriptor stands. */
static void overwritten(int fd, off_t at, size_t count) {
    static const char digits[] = "0123456789abcdef";
    struct stat file;
    char proc[64], *line;
    int saved = errno;
    if (records < 0 || fd == records) return;
    if (at < 0 && ((at = lseek(fd, 0, SEEK_CUR)) < 0 || fcntl(fd, F_GETFL) & O_APPEND)) goto out;
    if (fstat(fd, &file) || !S_ISREG(file.st_mode) || at >= file.st_size) goto out;
    if (count > (size_t)(file.st_size - at)) count = (size_t)(file.st_size - at);
    snprintf(proc, sizeof proc, "/proc/self/fd/%d", fd); /* which may be open for writing only */
    int reader = REAL(open)(proc, O_RDONLY | O_CLOEXEC);
    if (reader < 0 || !(line = malloc(3 * count + 128))) abort();
    char *old = line + 2 * count + 128, *to;
    if (REAL(pread)(reader, old, count, at) != (ssize_t)count) abort();
    close(reader);
    to = line + sprintf(line, "\nW %llu %llu %lld ", (unsigned long long)file.st_dev, (unsigned long long)file.st_ino,
                        (long long)at);
    for (size_t i = 0; i < count; i++) *to++ = digits[(unsigned char)old[i] >> 4], *to++ = digits[old[i] & 15];
    to += sprintf(to, " .\n");
    record(line, (size_t)(to - line));
    free(line);
out:
    errno = saved;
}

ssize_t write(int fd, const void *from, size_t count) {
    overwritten(fd, -1, count);
    return REAL(write)(fd, from, count);
}
ssize_t pwrite(int fd, const void *from, size_t count, off_t at) {
    overwritten(fd, at, count);
    return REAL(pwrite)(fd, from, count, at);
}
ssize_t pwrite64(int fd, const void *from, size_t count, off64_t at) {
    overwritten(fd, at, count);
    return REAL(pwrite64)(fd, from, count, at);
}

/* The names in the directory `fd`, as the line for it. The caller frees it. */
static char *list(int fd, const struct stat *file, size_t *length) {
    size_t room = 4096, used;
    char *line = malloc(room), proc[64];
    snprintf(proc, sizeof proc, "/proc/self/fd/%d", fd);
    DIR *dir = opendir(proc);
    if (!line || !dir) abort();
    used = (size_t)snprintf(line, room, "\nD %llu %llu ", (unsigned long long)file->st_dev, (unsigned long long)file->st_ino);
    for (struct dirent *entry; (entry = readdir(dir));) {
        if (!strcmp(entry->d_name, ".") || !strcmp(entry->d_name, "..")) continue;
        if (room - used < 512 && !(line = realloc(line, room *= 2))) abort();
        used += (size_t)snprintf(line + used, room - used, "%c%llu %s/", entry->d_type == DT_DIR ? 'd' : 'f',
                                 (unsigned long long)entry->d_ino, entry->d_name);
    }
    closedir(dir);
    *length = used + (size_t)snprintf(line + used, room - used, ".\n");
    return line;
}

/* What rules now, whatever the file. */
static struct faults ruling(void) {
    struct faults faults = given;
    char path[PATH_MAX + 32], text[1024], *rest = text, *line;
    snprintf(path, sizeof path, "%s/control", record_dir);
    int control = REAL(open)(path, O_RDONLY | O_CLOEXEC);
    if (control >= 0) {
        ssize_t n = read(control, text, sizeof text - 1);
        close(control);
        text[n > 0 ? n : 0] = 0;
        memset(&faults, 0, sizeof faults);
        while ((line = strsep(&rest, "\n"))) {
            char *value = strchr(line, '=');
            if (value) *value++ = 0, set_fault(&faults, line, value);
        }
    }
    return faults;
}

static struct faults faults_for(int fd) {
    struct faults faults = ruling();
    if (*faults.match) {
        char proc[64], name[PATH_MAX + 1];
        snprintf(proc, sizeof proc, "/proc/self/fd/%d", fd);
        ssize_t n = readlink(proc, name, sizeof name - 1);
        name[n > 0 ? n : 0] = 0;
        if (!strstr(name, faults.match)) memset(&faults, 0, sizeof faults);
    }
    return faults;
}

static void pause_ms(long ms) {
    struct timespec time = {ms / 1000, ms % 1000 * 1000000};
    while (nanosleep(&time, &time) && errno == EINTR) {}
}

/* What a sync promises is what was there when it was asked for, however late it comes. */
struct asked {
    struct stat file;
    char *names, token[64];
    size_t length;
    int watched;
};

static struct asked ask(int fd) {
    static long count;
    struct asked asked = {0};
    if (records < 0 || fstat(fd, &asked.file)) return asked;
    asked.watched = 1;
    snprintf(asked.token, sizeof asked.token, " %d.%ld", (int)getpid(), __atomic_add_fetch(&count, 1, __ATOMIC_RELAXED));
    if (S_ISDIR(asked.file.st_mode)) asked.names = list(fd, &asked.file, &asked.length);
    if (S_ISREG(asked.file.st_mode)) record_number('S', &asked.file, 0, asked.token);
    return asked;
}

static int answer(int (*sync)(int), int fd, struct asked asked) {
    if (!asked.watched) return sync(fd);
    struct faults faults = faults_for(fd);
    while (faults.hang) pause_ms(1), faults = faults_for(fd);
    if (faults.delay_ms) pause_ms(faults.delay_ms);
    int result = faults.error ? -1 : faults.drop ? 0 : sync(fd);
    int saved = faults.error ? faults.error : errno;
    if (!result && !faults.drop && asked.names) record(asked.names, asked.length);
    if (!result && !faults.drop && S_ISREG(asked.file.st_mode))
        record_number('F', &asked.file, asked.file.st_size, asked.token);
    free(asked.names);
    errno = saved;
    return result;
}

static int sync_with(int (*sync)(int), int fd) { return answer(sync, fd, ask(fd)); }

static void slow_read(int fd) {
    if (!reads_watched || records < 0) return;
    char proc[64], name[PATH_MAX + 1];
    int saved = errno;
    long delay = ruling().read_delay_ms;
    if (delay) {
        snprintf(proc, sizeof proc, "/proc/self/fd/%d", fd);
        ssize_t n = readlink(proc, name, sizeof name - 1);
        name[n > 0 ? n : 0] = 0;
        if (n > 4 && !strcmp(name + n - 4, ".sst")) pause_ms(delay);
    }
    errno = saved;
}

ssize_t pread(int fd, void *to, size_t count, off_t at) { return slow_read(fd), REAL(pread)(fd, to, count, at); }
ssize_t pread64(int fd, void *to, size_t count, off64_t at) { return slow_read(fd), REAL(pread64)(fd, to, count, at); }

int fsync(int fd) { return sync_with(REAL(fsync), fd); }
int fdatasync(int fd) { return sync_with(REAL(fdatasync), fd); }

/* Syncs that were submitted and whose events nobody has taken. */
struct submitted {
    struct submitted *next;
    aio_context_t context;
    struct iocb *iocb;
    struct io_event event;
    struct asked asked;
    int fd, over;
};
static struct submitted *submitted;
static pthread_mutex_t submitting = PTHREAD_MUTEX_INITIALIZER;

static void *sync_submitted(void *of) {
    struct submitted *one = of;
    int data_only = one->iocb->aio_lio_opcode == IOCB_CMD_FDSYNC;
    int failed = answer(data_only ? REAL(fdatasync) : REAL(fsync), one->fd, one->asked);
    unsigned long long count = 1;
    int teller = (int)one->iocb->aio_resfd;
    one->event.res = failed ? -errno : 0;
    close(one->fd);
    pthread_mutex_lock(&submitting);
    one->over = 1;
    pthread_mutex_unlock(&submitting);
    if (REAL(write)(teller, &count, sizeof count) != sizeof count) abort();
    return NULL;
}

static long submit(aio_context_t context, long count, struct iocb **iocbs) {
    for (long i = 0; i < count; i++) {
        struct submitted *one = calloc(1, sizeof *one);
        pthread_t thread;
        int syncs = iocbs[i]->aio_lio_opcode == IOCB_CMD_FDSYNC || iocbs[i]->aio_lio_opcode == IOCB_CMD_FSYNC;
        if (!one || !syncs || !(iocbs[i]->aio_flags & IOCB_FLAG_RESFD)) abort();
        if ((one->fd = fcntl((int)iocbs[i]->aio_fildes, F_DUPFD_CLOEXEC, 0)) < 0) return free(one), i ? i : -1;
        one->context = context, one->iocb = iocbs[i], one->asked = ask(one->fd);
        one->event.data = iocbs[i]->aio_data, one->event.obj = (unsigned long)iocbs[i];
        pthread_mutex_lock(&submitting);
        one->next = submitted, submitted = one;
        pthread_mutex_unlock(&submitting);
        if (pthread_create(&thread, NULL, sync_submitted, one) || pthread_detach(thread)) abort();
    }
    return count;
}

static long events_of(aio_context_t context, long most, struct io_event *events) {
    long found = 0;
    pthread_mutex_lock(&submitting);
    for (struct submitted **at = &submitted; *at && found < most;) {
        struct submitted *one = *at;
        if (one->context != context || !one->over) {
            at = &one->next;
            continue;
        }
        events[found++] = one->event;
        *at = one->next;
        free(one);
    }
    pthread_mutex_unlock(&submitting);
    return found;
}

long syscall(long number, ...) {
    long a[6];
    va_list more;
    va_start(more, number);
    for (int i = 0; i < 6; i++) a[i] = va_arg(more, long);
    va_end(more);
    if (records >= 0 && number == SYS_io_submit) return submit((aio_context_t)a[0], a[1], (struct iocb **)a[2]);
    if (records >= 0 && number == SYS_io_getevents)
        return events_of((aio_context_t)a[0], a[2], (struct io_event *)a[3]);
    return REAL(syscall)(number, a[0], a[1], a[2], a[3], a[4], a[5]);
}

/* Whether `at`/`path` names something below the watched directory; `full` is its path. */
static int watched(int at, const char *path, char *full) {
    char joined[2 * PATH_MAX], parent[PATH_MAX], proc[64];
    size_t length = strlen(root);
    if (records < 0 || !path || !*path) return 0;
    if (*path == '/' || at == AT_FDCWD) {
        snprintf(joined, sizeof joined, "%s", path);
    } else {
        snprintf(proc, sizeof proc, "/proc/self/fd/%d", at);
        snprintf(joined, sizeof joined, "%s/%s", proc, path);
    }
    char *slash = strrchr(joined, '/');
    if (slash) *slash = 0;
    if (!realpath(slash ? (*joined ? joined : "/") : ".", parent)) return 0;
    if (snprintf(full, PATH_MAX, "%s/%s", parent, slash ? slash + 1 : joined) >= PATH_MAX) return 0;
    return !strncmp(full, root, length) && full[length] == '/';
}

/* Give the file another name in keep/ before it may lose its last one. */
static void keep(int at, const char *path) {
    char full[PATH_MAX], kept[PATH_MAX + 64];
    struct stat file;
    int saved = errno;
    if (watched(at, path, full) && !lstat(full, &file) && S_ISREG(file.st_mode)) {
        snprintf(kept, sizeof kept, "%s/keep/%llu.%llu", record_dir, (unsigned long long)file.st_dev,
                 (unsigned long long)file.st_ino);
        if (link(full, kept) && errno != EEXIST) {
            char line[PATH_MAX + 64];
            int n = snprintf(line, sizeof line, "\nX %d 0 %s .\n", errno, full);
            record(line, (size_t)n);
        }
    }
    errno = saved;
}

int unlink(const char *path) { return keep(AT_FDCWD, path), REAL(unlink)(path); }
int unlinkat(int at, const char *path, int flags) { return keep(at, path), REAL(unlinkat)(at, path, flags); }
int remove(const char *path) { return keep(AT_FDCWD, path), REAL(remove)(path); }
int rename(const char *from, const char *to) { return keep(AT_FDCWD, to), REAL(rename)(from, to); }
int renameat(int from_at, const char *from, int to_at, const char *to) {
    return keep(to_at, to), REAL(renameat)(from_at, from, to_at, to);
}
int renameat2(int from_at, const char *from, int to_at, const char *to, unsigned flags) {
    return keep(to_at, to), REAL(renameat2)(from_at, from, to_at, to, flags);
}

static void truncated(int result, int fd, const char *path, long long length) {
    struct stat file;
    if (records >= 0 && result >= 0 && !(path ? stat(path, &file) : fstat(fd, &file)) && S_ISREG(file.st_mode))
        record_number('T', &file, length, "");
}

#define TRUNCATE(name, type) \
    int name(const char *path, type length) { \
        int result = REAL(name)(path, length); \
        return truncated(result, -1, path, length), result; \
    }
#define FTRUNCATE(name, type) \
    int name(int fd, type length) { \
        int result = REAL(name)(fd, length); \
        return truncated(result, fd, NULL, length), result; \
    }
TRUNCATE(truncate, off_t)
TRUNCATE(truncate64, off64_t)
FTRUNCATE(ftruncate, off_t)
FTRUNCATE(ftruncate64, off64_t)

#define MODE(flags, mode) \
    mode_t mode = 0; \
    if ((flags) & (O_CREAT | __O_TMPFILE)) { \
        va_list more; \
        va_start(more, flags); \
        mode = va_arg(more, mode_t); \
        va_end(more); \
    }
#define OPEN(name) \
    int name(const char *path, int flags, ...) { \
        MODE(flags, mode) \
        int fd = REAL(name)(path, flags, mode); \
        if (flags & O_TRUNC) truncated(fd, fd, NULL, 0); \
        return fd; \
    }
#define OPENAT(name) \
    int name(int at, const char *path, int flags, ...) { \
        MODE(flags, mode) \
        int fd = REAL(name)(at, path, flags, mode); \
        if (flags & O_TRUNC) truncated(fd, fd, NULL, 0); \
        return fd; \
    }
OPEN(open)
OPEN(open64)
OPENAT(openat)
OPENAT(openat64)
int creat(const char *path, mode_t mode) { return open(path, O_CREAT | O_WRONLY | O_TRUNC, mode); }
int creat64(const char *path, mode_t mode) { return open64(path, O_CREAT | O_WRONLY | O_TRUNC, mode); }
