// Calls mtrace() and leaves four blocks; frees one that was allocated before.
#include <mcheck.h>
#include <stdlib.h>
#include <string.h>
__attribute__((noinline)) char *leak(size_t n) { char *p = malloc(n); return p; }
int main(void) {
    char *before = malloc(7);
    mtrace();
    char *a = leak(10), *b = leak(20); char *s = strdup("hello");
    a = realloc(a, 4000); free(b); free(before);
    b = calloc(3, 5); b = realloc(b, 0); (void)s; (void)a;
    void *q = aligned_alloc(64, 128); (void)q;
    char *r = realloc(NULL, 55); (void)r;
    return 0;
}
