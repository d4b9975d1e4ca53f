/* A small stand-in for the injected library: asks for a ledger, says that it runs, answers snapshots.
 * The offsets come from the compiler's command line, so that layout.rs stays the only description. */
#define _GNU_SOURCE
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <unistd.h>

static volatile uint8_t *ledger;
static char address[200];

static uint32_t *word(size_t offset) { return (uint32_t *)(ledger + offset); }

static void on_nudge(int signal) {
    (void)signal;
    *word(OFFSET_SNAPSHOT_DONE) = *word(OFFSET_SNAPSHOT_WANTED);
}

/* glibc keeps the signal for itself, so its own sigaction would refuse. */
__attribute__((naked)) static void restorer(void) { __asm__("mov $15, %eax\n\tsyscall"); }

static void handle_nudge(void) {
    struct { void (*handler)(int); unsigned long flags; void (*restorer)(void); unsigned long mask; } action = {on_nudge, 0x04000000 | SA_RESTART, restorer, 0};
    syscall(SYS_rt_sigaction, NUDGE_SIGNAL, &action, NULL, 8);
}

static void ask(uint32_t origin) {
    ledger = NULL;
    char name[200];
    strncpy(name, address, sizeof name - 1);
    char *colon = strrchr(name, ':');
    if (!colon) return;
    *colon = 0;
    struct { uint32_t version, origin; uint8_t token[16]; uint32_t pid, parent; } hello = {1, origin, {0}, (uint32_t)getpid(), (uint32_t)getppid()};
    for (int i = 0; i < 16; i++) {
        unsigned byte;
        sscanf(colon + 1 + 2 * i, "%2x", &byte);
        hello.token[i] = (uint8_t)byte;
    }
    if (getenv("CLIENT_WRONG_TOKEN")) hello.token[0] ^= 1;
    int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    struct sockaddr_un to = {.sun_family = AF_UNIX};
    memcpy(to.sun_path + 1, name, strlen(name));
    if (connect(fd, (struct sockaddr *)&to, (socklen_t)(sizeof(sa_family_t) + 1 + strlen(name)))) return;
    send(fd, &hello, sizeof hello, 0);
    struct { uint32_t version, status; uint64_t bytes; } welcome = {0, 9, 0};
    char space[CMSG_SPACE(sizeof(int))];
    struct iovec part = {&welcome, sizeof welcome};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = space, .msg_controllen = sizeof space};
    if (recvmsg(fd, &message, 0) != sizeof welcome || welcome.status != 0) { close(fd); return; }
    int memfd;
    memcpy(&memfd, CMSG_DATA(CMSG_FIRSTHDR(&message)), sizeof memfd);
    ledger = mmap(NULL, welcome.bytes, PROT_READ | PROT_WRITE, MAP_SHARED, memfd, 0);
    close(memfd);
    close(fd);
    /* One chunk of counters: 3 blocks of 100 bytes live. */
    uint64_t *counters = (uint64_t *)(ledger + OFFSET_COUNTERS);
    counters[0] = 5, counters[1] = 500, counters[2] = 2, counters[3] = 200;
    *word(OFFSET_USED_COUNTERS) = 1;
    *word(OFFSET_STATE) = 1;
}

static void at_fork(void) { ask(1); }

__attribute__((constructor)) static void start(void) {
    const char *variable = getenv("LEAKSCOPE_CTL");
    if (!variable) return;
    strncpy(address, variable, sizeof address - 1);
    if (getenv("CLIENT_HANDLES_NUDGE")) handle_nudge();
    ask(getenv("CLIENT_STARTED") ? 2 : 0);
    setenv("CLIENT_STARTED", "1", 1);
    pthread_atfork(NULL, NULL, at_fork);
}

__attribute__((destructor)) static void end(void) {
    if (ledger) *word(OFFSET_STATE) = 3;
}
