/* A disk without room: no file grows while the file named by ONSALE_TEST_DISK_FULL is there.
 *
 * LD_PRELOAD. What overwrites goes on as ever, as it does on a disk that is full. The server's own
 * log (its stdout and stderr) is taken to be on another one.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

/* Whether so many bytes would have to be found; an offset of -1 stands for the file's own. */
static int refused(int fd, off_t offset, size_t count) {
  struct stat found;
  int before = errno;
  const char *flag = getenv("ONSALE_TEST_DISK_FULL");
  int full = fd > 2 && flag && access(flag, F_OK) == 0;
  errno = before;
  if (!full || fstat(fd, &found) || !S_ISREG(found.st_mode)) return 0;
  if (offset < 0)
    offset = fcntl(fd, F_GETFL) & O_APPEND ? found.st_size : lseek(fd, 0, SEEK_CUR);
  if (offset + (off_t)count <= found.st_size) return 0;
  errno = ENOSPC;
  return 1;
}

static size_t sum(const struct iovec *parts, int count) {
  size_t bytes = 0;
  for (int at = 0; at < count; at++) bytes += parts[at].iov_len;
  return bytes;
}

ssize_t write(int fd, const void *from, size_t count) {
  return refused(fd, -1, count) ? -1 : REAL(write)(fd, from, count);
}

ssize_t writev(int fd, const struct iovec *parts, int count) {
  return refused(fd, -1, sum(parts, count)) ? -1 : REAL(writev)(fd, parts, count);
}

#define PWRITE(name)                                                                     \
  ssize_t name(int fd, const void *from, size_t count, off_t offset) {                   \
    return refused(fd, offset, count) ? -1 : REAL(name)(fd, from, count, offset);        \
  }
#define PWRITEV(name)                                                                    \
  ssize_t name(int fd, const struct iovec *from, int count, off_t offset) {              \
    return refused(fd, offset, sum(from, count)) ? -1 : REAL(name)(fd, from, count, offset); \
  }
PWRITE(pwrite)
PWRITE(pwrite64)
PWRITEV(pwritev)
PWRITEV(pwritev64)

int posix_fallocate(int fd, off_t offset, off_t count) {
  return refused(fd, offset, (size_t)count) ? ENOSPC : REAL(posix_fallocate)(fd, offset, count);
}

int posix_fallocate64(int fd, off64_t offset, off64_t count) {
  return refused(fd, offset, (size_t)count) ? ENOSPC : REAL(posix_fallocate64)(fd, offset, count);
}
