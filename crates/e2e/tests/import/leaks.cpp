// Leaks that Memcheck, AddressSanitizer and leakscope see alike; crates/e2e/tests/import.rs has the call paths.
//   lose_list: 1 block of 16 bytes definitely lost, 2 hang on it;  lose_text: strdup of 42 bytes
//   lose_array: new[] of 100 bytes in a thread;  lose_realloc: 77 bytes;  main: 16 bytes still reachable
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>
#include <pthread.h>
struct Node { Node *next; char *text; };
Node *keep;
__attribute__((noinline)) Node *make_node(Node *next) {
    Node *n = new Node; n->next = next; n->text = nullptr; return n;
}
__attribute__((noinline)) void lose_list(int count) {
    Node *list = nullptr;
    for (int i = 0; i < count; ++i) list = make_node(list);
    keep = list; keep = nullptr;
}
__attribute__((noinline)) char *copy_text(const char *text) { return strdup(text); }
__attribute__((noinline)) void lose_text() { volatile char *p = copy_text("forty-two bytes of text, more or less now"); p = nullptr; (void)p; }
__attribute__((noinline)) void *lose_array(void *) { volatile int *p = new int[25]; p[0] = 1; p = nullptr; return nullptr; }
__attribute__((noinline)) int recurse(int depth) { if (depth == 0) { volatile char *p = (char *)calloc(3, 11); p = nullptr; return 1; } return recurse(depth - 1) + 1; }
template <class T> __attribute__((noinline)) void lose_realloc(T n) { volatile char *p = (char *)realloc(malloc(10), n); p = nullptr; (void)p; }
__attribute__((noinline)) void clear_stack() { volatile char big[8192]; memset((void *)big, 0, sizeof big); }
int main() {
    lose_list(3); lose_text(); recurse(6); lose_realloc<long>(77);
    pthread_t t; pthread_create(&t, nullptr, lose_array, nullptr); pthread_join(t, nullptr);
    keep = make_node(nullptr);
    clear_stack();
    return 0;
}
