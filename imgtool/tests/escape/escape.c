// Loaded into imgtool by its tests: when it first prints something, this tries to leave the sandbox, in that thread and in a
// new one, and notes in an open file what came of each attempt: its name, and 0 or the error.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <netinet/in.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

static int notes = -1;
static int tried;

__attribute__((constructor)) static void start(void) {
    const char *path = getenv("ESCAPE_NOTES");
    if (path)
        notes = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
}

static void note(const char *name, long result) {
    int error = result == -1 ? errno : 0;
    dprintf(notes, "%s %d\n", name, error);
}

// A raw call, so that no wrapper tries another way or fails by itself.
#define TRY(name, ...) note(name, syscall(__VA_ARGS__))

// What came of the attempt in threads that were there before.
static volatile int of_others;

static void open_in_handler(int signal) {
    (void)signal;
    if (syscall(SYS_openat, AT_FDCWD, "/etc/passwd", O_RDONLY, 0) >= 0)
        of_others = 0;
}

// Has every thread of this process open a file.
static void try_in_others(void) {
    struct sigaction action = {.sa_handler = open_in_handler};
    struct timespec moment = {.tv_nsec = 50000000};
    pid_t me = getpid();
    of_others = EACCES;
    sigaction(SIGTRAP, &action, NULL);
    for (pid_t thread = me; thread < me + 12; thread++)
        syscall(SYS_tgkill, me, thread, SIGTRAP);
    nanosleep(&moment, NULL);
    errno = of_others;
    note("open-in-others", of_others ? -1 : 0);
}

// Sends to whoever listens, by a socket that has another one to talk to.
static void try_datagram(void) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int pair[2];
    snprintf(address.sun_path, sizeof address.sun_path, "%s", getenv("ESCAPE_SOCKET"));
    if (syscall(SYS_socketpair, AF_UNIX, SOCK_DGRAM, 0, pair) == -1)
        note("send", -1);
    else
        TRY("send", SYS_sendto, pair[0], "x", 1UL, 0, &address, sizeof address);
}

static void *try_all(void *unused) {
    char *victim = getenv("ESCAPE_VICTIM"), other[4096], buffer[16];
    snprintf(other, sizeof other, "%s.other", victim);
    struct iovec local = {buffer, sizeof buffer}, remote = {buffer, sizeof buffer};
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(atoi(getenv("ESCAPE_PORT")))};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    struct rlimit limit = {RLIM_INFINITY, RLIM_INFINITY};
    int waiting = 0;
    long flags = 0;
    char *const nothing[] = {"/bin/true", NULL};
    unsigned long how[3] = {O_RDONLY, 0, 0}, uring[15] = {0};
    char *page = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    TRY("open", SYS_openat, AT_FDCWD, "/etc/passwd", O_RDONLY, 0);
    TRY("open-path", SYS_openat2, AT_FDCWD, "/etc/passwd", how, sizeof how);
    TRY("write-over", SYS_openat, AT_FDCWD, victim, O_WRONLY, 0);
    TRY("create", SYS_openat, AT_FDCWD, other, O_WRONLY | O_CREAT | O_EXCL, 0600);
    TRY("truncate", SYS_truncate, victim, 1L);
    TRY("chmod", SYS_fchmodat, AT_FDCWD, victim, 0777);
    TRY("link", SYS_linkat, AT_FDCWD, victim, AT_FDCWD, other, 0);
    TRY("mkdir", SYS_mkdirat, AT_FDCWD, other, 0700);
    TRY("rename", SYS_renameat2, AT_FDCWD, victim, AT_FDCWD, other, 0);
    TRY("remove", SYS_unlinkat, AT_FDCWD, victim, 0);
    TRY("tcp", SYS_socket, AF_INET, SOCK_STREAM, 0);
    TRY("udp", SYS_socket, AF_INET, SOCK_DGRAM, 0);
    TRY("unix", SYS_socket, AF_UNIX, SOCK_STREAM, 0);
    TRY("connect", SYS_connect, 0, &address, sizeof address);
    TRY("trace", SYS_ptrace, PTRACE_SEIZE, getppid(), 0, 0);
    TRY("read-memory", SYS_process_vm_readv, getppid(), &local, 1UL, &remote, 1UL, 0UL);
    TRY("signal", SYS_kill, getppid(), 0);
    TRY("run-code", SYS_mmap, NULL, 4096UL, PROT_READ | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0L);
    TRY("make-code", SYS_mprotect, page, 4096UL, PROT_READ | PROT_EXEC);
    TRY("type", SYS_ioctl, 0, TIOCSTI, "x");
    TRY("ask-file", SYS_ioctl, notes, FIONREAD, &waiting);
    TRY("file-flags", SYS_ioctl, notes, FS_IOC_GETFLAGS, &flags);
    TRY("uring", SYS_io_uring_setup, 8, uring);
    TRY("namespace", SYS_unshare, CLONE_NEWNS);
    TRY("mount", SYS_mount, "none", "/mnt", "tmpfs", 0UL, NULL);
    TRY("limits", SYS_prlimit64, getppid(), RLIMIT_NOFILE, &limit, NULL);
    TRY("dumpable", SYS_prctl, PR_SET_DUMPABLE, 0, 0, 0, 0);
    try_in_others();
    try_datagram();
    long process = syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0);
    if (process == 0)
        syscall(SYS_exit_group, 0);
    note("process", process);
    // In a child: what succeeds does not return, and closes the pipe without a word.
    int ends[2], error = 0;
    if (pipe2(ends, O_CLOEXEC) == 0) {
        pid_t child = fork();
        if (child == -1)
            error = errno;
        if (child == 0) {
            syscall(SYS_execve, nothing[0], nothing, NULL);
            error = errno;
            syscall(SYS_write, ends[1], &error, sizeof error);
            syscall(SYS_exit_group, 1);
        }
        close(ends[1]);
        if (read(ends[0], &error, sizeof error) == sizeof error)
            errno = error;
        note("execute", error ? -1 : 0);
        close(ends[0]);
    }
    return unused;
}

ssize_t write(int fd, const void *data, size_t len) {
    struct stat to;
    // Standard output may go by another number; what it is sent to here is a pipe.
    int prints = fd == 1 || (fd > 2 && fstat(fd, &to) == 0 && S_ISFIFO(to.st_mode));
    // Some print before they enter the sandbox, in which this cannot be asked.
    if (getenv("ESCAPE_LATER") && prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0) == 0)
        prints = 0;
    if (prints && notes >= 0 && !__sync_lock_test_and_set(&tried, 1)) {
        pthread_t thread;
        try_all(NULL);
        if (pthread_create(&thread, NULL, try_all, NULL) == 0)
            pthread_join(thread, NULL);
    }
    return syscall(SYS_write, fd, data, len);
}
