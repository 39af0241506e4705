// Linked into a wheel's module, which so asks for no newer glibc than torch's wheels do, 2.28, though it was built with a
// newer one. In 2.32 and 2.34 these functions moved from libpthread to libc and got another version by it; as what they
// were before, glibc still has them. Calls of them come here by the linker's --wrap (ci/wheels, where auditwheel then looks
// whether anything newer is left).
#include <pthread.h>
#include <signal.h>

#ifdef __aarch64__
#define BEFORE(name) name "@GLIBC_2.17"
#define NAMED BEFORE("pthread_setname_np")
#else
#define BEFORE(name) name "@GLIBC_2.2.5"
#define NAMED "pthread_setname_np@GLIBC_2.12"
#endif

__asm__(".symver older_create, " BEFORE("pthread_create"));
__asm__(".symver older_join, " BEFORE("pthread_join"));
__asm__(".symver older_detach, " BEFORE("pthread_detach"));
__asm__(".symver older_sigmask, " BEFORE("pthread_sigmask"));
__asm__(".symver older_setname, " NAMED);

extern "C" {
int older_create(pthread_t*, const pthread_attr_t*, void* (*)(void*), void*);
int older_join(pthread_t, void**);
int older_detach(pthread_t);
int older_sigmask(int, const sigset_t*, sigset_t*);
int older_setname(pthread_t, const char*);

int __wrap_pthread_create(pthread_t* thread, const pthread_attr_t* how, void* (*run)(void*), void* with) {
  return older_create(thread, how, run, with);
}
int __wrap_pthread_join(pthread_t thread, void** result) { return older_join(thread, result); }
int __wrap_pthread_detach(pthread_t thread) { return older_detach(thread); }
int __wrap_pthread_sigmask(int how, const sigset_t* set, sigset_t* before) { return older_sigmask(how, set, before); }
int __wrap_pthread_setname_np(pthread_t thread, const char* name) { return older_setname(thread, name); }

// Where it is true, libstdc++ counts without atomic instructions. A process with torch in it has threads.
char __libc_single_threaded = 0;
}
