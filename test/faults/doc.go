// Package faults holds the tests that make system calls fail and processes die;
// it has no other code.
//
// [seccomp_unotify(2)] stops the real program, dray, at every system call that
// changes a disk or a mount table. A test lets the calls pass and counts them, and
// then, run after run, makes the N-th of them fail with EIO, fail with ENOSPC, or
// be the last that the process ever made (SIGKILL). After each, the store has to be
// sound, the image has to be pulled and mounted again, equal to the model, and
// nothing may be left behind.
//
// In the same way another process removes an image's name and collects garbage before
// the N-th call of a mount, for every N until the mount's record holds the image.
//
// strace -e inject does the same for programs of one thread; it counts calls thread
// by thread, so that "the fifth write" of a Go program is another one, or several,
// in each run.
//
// [seccomp_unotify(2)]: https://man7.org/linux/man-pages/man2/seccomp_unotify.2.html
package faults
