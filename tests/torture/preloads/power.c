/* What a power cut would leave of a server's files, kept while the server is at work.
 *
 * LD_PRELOAD. Writes one line into the file named by ONSALE_TEST_POWER_LOG, which outlives a kill -9, for
 * each of: a file that was synced, with the size that it had before the sync began; a file that was
 * made shorter; a name that was made, changed or removed; a directory that was synced, which makes
 * its names last. What a name no longer leads to is kept under ONSALE_TEST_POWER_KEPT by a link, so that
 * a removal that did not last can be undone. Nothing of what the server asks for is changed.
 *
 * Lines: "sync <inode> <size>", "short <inode> <size>", "made <path>", "moved <kept> <from> <to>",
 * "gone <kept> <path>", "dir <path>"; <kept> is "-" where there was nothing to keep. Not seen: what
 * goes past libc, O_SYNC, maps. Names are absolute and have no white space.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define REAL(name) ((__typeof__(&name))real(#name))

static void *real(const char *name) {
  void *found = dlsym(RTLD_NEXT, name);
  if (!found) abort();
  return found;
}

static void say(const char *format, ...) {
  static _Atomic int log_fd = -1;
  int before = errno;
  if (log_fd < 0) {
    const char *path = getenv("ONSALE_TEST_POWER_LOG");
    int opened = REAL(open)(path ? path : "", O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600);
    if (opened < 0) abort();
    log_fd = opened;
  }
  char line[2 * PATH_MAX + 64];
  va_list words;
  va_start(words, format);
  int length = vsnprintf(line, sizeof line, format, words);
  va_end(words);
  /* One write at the end of the file: lines of several threads and processes stay whole. */
  if (write(log_fd, line, (size_t)length) != length) abort();
  errno = before;
}

static void whole(const char *path, char *found) {
  char here[PATH_MAX];
  if (path[0] == '/' || !getcwd(here, sizeof here)) here[0] = 0;
  snprintf(found, PATH_MAX, here[0] ? "%s/%s" : "%s%s", here, path);
}

/* Link what a name leads to into a place of its own. */
static void keep(const char *path, char *kept) {
  static _Atomic int count;
  int before = errno;
  const char *directory = getenv("ONSALE_TEST_POWER_KEPT");
  if (!directory) abort();
  snprintf(kept, PATH_MAX, "%s/%d-%d", directory, getpid(), count++);
  if (link(path, kept)) strcpy(kept, "-");
  errno = before;
}

static int synced(int fd, int (*sync)(int)) {
  struct stat found;
  char name[64], path[PATH_MAX];
  if (fstat(fd, &found)) return sync(fd);
  int result = sync(fd);
  if (result == 0 && S_ISREG(found.st_mode)) {
    say("sync %llu %lld\n", (unsigned long long)found.st_ino, (long long)found.st_size);
  } else if (result == 0 && S_ISDIR(found.st_mode)) {
    snprintf(name, sizeof name, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(name, path, sizeof path - 1);
    if (length > 0) {
      path[length] = 0;
      say("dir %s\n", path);
    }
  }
  return result;
}

int fsync(int fd) { return synced(fd, REAL(fsync)); }
int fdatasync(int fd) { return synced(fd, REAL(fdatasync)); }

static int shortened(int fd, int result, long long size) {
  struct stat found;
  if (result == 0 && fstat(fd, &found) == 0)
    say("short %llu %lld\n", (unsigned long long)found.st_ino, size);
  return result;
}

int ftruncate(int fd, off_t size) { return shortened(fd, REAL(ftruncate)(fd, size), size); }
int ftruncate64(int fd, off64_t size) { return shortened(fd, REAL(ftruncate64)(fd, size), size); }

int rename(const char *from, const char *to) {
  char kept[PATH_MAX], whole_from[PATH_MAX], whole_to[PATH_MAX];
  whole(from, whole_from);
  whole(to, whole_to);
  keep(to, kept);
  int result = REAL(rename)(from, to);
  if (result == 0) say("moved %s %s %s\n", kept, whole_from, whole_to);
  return result;
}

int unlink(const char *path) {
  char kept[PATH_MAX], whole_path[PATH_MAX];
  whole(path, whole_path);
  keep(path, kept);
  int result = REAL(unlink)(path);
  if (result == 0) say("gone %s %s\n", kept, whole_path);
  return result;
}

/* A file that is opened with O_TRUNC is another from then on; a name that was not there is made. */
static int opened(const char *path, int fd, int was_there, int is_cut) {
  char whole_path[PATH_MAX];
  if (fd < 0) return fd;
  whole(path, whole_path);
  if (!was_there) say("made %s\n", whole_path);
  else if (is_cut) shortened(fd, 0, 0);
  return fd;
}

static int there(const char *path) {
  int before = errno, found = access(path, F_OK) == 0;
  errno = before;
  return found;
}

#define OPEN(name)                                                          \
  int name(const char *path, int flags, ...) {                              \
    va_list words;                                                          \
    va_start(words, flags);                                                 \
    mode_t mode = flags & O_CREAT ? va_arg(words, mode_t) : 0;              \
    va_end(words);                                                          \
    if (!(flags & (O_CREAT | O_TRUNC))) return REAL(name)(path, flags);     \
    int was_there = there(path);                                            \
    return opened(path, REAL(name)(path, flags, mode), was_there, flags & O_TRUNC); \
  }

OPEN(open)
OPEN(open64)

#define FOPEN(name)                                                         \
  FILE *name(const char *path, const char *mode) {                          \
    int was_there = there(path);                                            \
    FILE *file = REAL(name)(path, mode);                                    \
    if (file && mode[0] != 'r') opened(path, fileno(file), was_there, mode[0] == 'w'); \
    return file;                                                            \
  }

FOPEN(fopen)
FOPEN(fopen64)
