#include "file_io.h"

#include <cerrno>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <system_error>

#include <fcntl.h>
#include <sys/stat.h>
#ifdef _WIN32
#include <io.h>
#include <windows.h>
#else
#include <unistd.h>
#endif

namespace ddpm_rt {
namespace {

constexpr size_t kPiece = size_t{1} << 30;  // Linux moves at most 2 GiB - 4 KiB in one call

std::string errno_text(int code) {
  return code == ENOENT ? "no such file" : std::generic_category().message(code);  // strerror is not thread-safe
}

bool fail(std::string* why, const std::string& what) {
  const int code = errno;
  *why = what.empty() ? errno_text(code) : what + ": " + errno_text(code);
  return false;
}

#ifdef _WIN32
constexpr int kReadFlags = _O_RDONLY | _O_BINARY | _O_NOINHERIT;
constexpr int kCreateFlags = _O_WRONLY | _O_CREAT | _O_EXCL | _O_BINARY | _O_NOINHERIT;
using Stat = struct _stat64;
int stat_path(const std::string& path, Stat* s) { return _stat64(path.c_str(), s); }
int stat_fd(int fd, Stat* s) { return _fstat64(fd, s); }
bool is_regular(const Stat& s) { return (s.st_mode & _S_IFMT) == _S_IFREG; }
int sync_fd(int fd) { return _commit(fd); }
bool replace(const std::string& from, const std::string& to) {
  if (MoveFileExA(from.c_str(), to.c_str(), MOVEFILE_REPLACE_EXISTING | MOVEFILE_WRITE_THROUGH)) return true;
  errno = EACCES;
  return false;
}
long long read_piece(int fd, void* out, size_t bytes, uint64_t offset) {
  OVERLAPPED at = {};
  at.Offset = static_cast<DWORD>(offset);
  at.OffsetHigh = static_cast<DWORD>(offset >> 32);
  DWORD got = 0;
  if (ReadFile(reinterpret_cast<HANDLE>(_get_osfhandle(fd)), out, static_cast<DWORD>(bytes), &got, &at)) return got;
  if (GetLastError() == ERROR_HANDLE_EOF) return 0;
  errno = EIO;
  return -1;
}
long long write_piece(int fd, const void* data, size_t bytes) { return _write(fd, data, static_cast<unsigned>(bytes)); }
int open_file(const char* path, int flags) { return _open(path, flags, _S_IREAD | _S_IWRITE); }
int close_fd(int fd) { return _close(fd); }
bool sync_folder(const std::string&) { return true; }
#else
constexpr int kReadFlags = O_RDONLY | O_CLOEXEC | O_NONBLOCK;  // O_NONBLOCK: a FIFO must not hang the caller
constexpr int kCreateFlags = O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC;
using Stat = struct stat;
int stat_path(const std::string& path, Stat* s) { return stat(path.c_str(), s); }
int stat_fd(int fd, Stat* s) { return fstat(fd, s); }
bool is_regular(const Stat& s) { return S_ISREG(s.st_mode); }
int sync_fd(int fd) { return fsync(fd); }
bool replace(const std::string& from, const std::string& to) { return std::rename(from.c_str(), to.c_str()) == 0; }
long long read_piece(int fd, void* out, size_t bytes, uint64_t offset) {
  return pread(fd, out, bytes, static_cast<off_t>(offset));
}
long long write_piece(int fd, const void* data, size_t bytes) { return ::write(fd, data, bytes); }
int open_file(const char* path, int flags) {
  int fd;
  do {
    fd = ::open(path, flags, 0666);
  } while (fd < 0 && errno == EINTR);
  return fd;
}
int close_fd(int fd) { return close(fd); }
bool sync_folder(const std::string& folder) {
  const int fd = open_file(folder.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) return errno == EACCES;  // a folder one may write to but not list: nothing more can be done
  const bool ok = fsync(fd) == 0 || errno == EINVAL || errno == ENOTSUP;  // file systems without folder sync
  const int code = errno;
  close(fd);
  errno = code;
  return ok;
}
#endif

std::string folder_of(const std::string& path) {
#ifdef _WIN32
  const size_t slash = path.find_last_of("/\\");
#else
  const size_t slash = path.rfind('/');
#endif
  return slash == std::string::npos ? "./" : path.substr(0, slash + 1);
}

}  // namespace

int open_regular(const std::string& path, uint64_t* bytes, std::string* why) {
  if (path.find('\0') != std::string::npos) {
    *why = "the name holds a NUL byte";
    return -1;
  }
  const int fd = open_file(path.c_str(), kReadFlags);
  if (fd < 0) {
    fail(why, "");
    return -1;
  }
  Stat s;
  if (stat_fd(fd, &s) != 0) {
    fail(why, "fstat");
  } else if (!is_regular(s)) {
    *why = "expected a regular file, got something else (a folder, a device or a pipe)";
  } else {
    *bytes = static_cast<uint64_t>(s.st_size);
    return fd;
  }
  close_fd(fd);
  return -1;
}

bool read_at(int fd, uint64_t offset, void* out, size_t bytes, std::string* why) {
  char* p = static_cast<char*>(out);
  while (bytes > 0) {
    const long long got = read_piece(fd, p, bytes < kPiece ? bytes : kPiece, offset);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return fail(why, "read at byte " + std::to_string(offset));
    if (got == 0) {
      *why = "expected " + std::to_string(bytes) + " more bytes at byte " + std::to_string(offset) +
             ", got the end of the file (it shrank while open)";
      return false;
    }
    p += got;
    offset += static_cast<uint64_t>(got);
    bytes -= static_cast<size_t>(got);
  }
  return true;
}

void close_file(int fd) {
  if (fd >= 0) close_fd(fd);
}

TemporaryFile::~TemporaryFile() {
  close_file(fd_);
  if (!name_.empty()) std::remove(name_.c_str());
}

bool TemporaryFile::open(std::string* why) {
  if (target_.empty() || target_.find('\0') != std::string::npos) {
    *why = "expected a file name, got an empty one or one with a NUL byte";
    return false;
  }
  // Renaming over a device node, as root, would replace it.
  Stat s;
  if (stat_path(target_, &s) == 0 && !is_regular(s)) {
    *why = "expected a regular file or a new name, got something else (a folder, a device or a pipe)";
    return false;
  }
  uint64_t salt = static_cast<uint64_t>(std::chrono::steady_clock::now().time_since_epoch().count()) ^
                  reinterpret_cast<uintptr_t>(this);
  for (int attempt = 0; attempt < 100; ++attempt) {
    salt = salt * 6364136223846793005u + 1442695040888963407u;
    char suffix[24];
    snprintf(suffix, sizeof suffix, "%016llx", static_cast<unsigned long long>(salt));
    const std::string name = folder_of(target_) + ".ddpm_rt-" + suffix + ".tmp";
    fd_ = open_file(name.c_str(), kCreateFlags);
    if (fd_ >= 0) {
      name_ = name;
      return true;
    }
    if (errno != EEXIST) break;
  }
  const int code = errno;
  *why = "cannot create a file in " + folder_of(target_) + ": " + std::generic_category().message(code);
  return false;
}

bool TemporaryFile::write(const void* data, size_t bytes, std::string* why) {
  const char* p = static_cast<const char*>(data);
  while (bytes > 0) {
    const long long done = write_piece(fd_, p, bytes < kPiece ? bytes : kPiece);
    if (done < 0 && errno == EINTR) continue;
    if (done < 0) return fail(why, "write");
    p += done;
    bytes -= static_cast<size_t>(done);
  }
  return true;
}

bool TemporaryFile::commit(std::string* why) {
  if (sync_fd(fd_) != 0) return fail(why, "fsync");
  const int fd = fd_;
  fd_ = -1;
  if (close_fd(fd) != 0) return fail(why, "close");
  if (!replace(name_, target_)) return fail(why, "rename");
  name_.clear();
  if (!sync_folder(folder_of(target_))) return fail(why, "the file is in place, but fsync of its folder");
  return true;
}

}  // namespace ddpm_rt
