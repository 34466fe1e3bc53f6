// Child processes, directories and free space. Every wrapper returns -errno.
#ifndef MARTLET_HOST_PROCESS_H
#define MARTLET_HOST_PROCESS_H

#include <stdint.h>

// MARK: Child processes

/// Starts a program in a process group of its own, with default signals, `input` as standard input, `output` as standard
/// output and error, and `extra` (if not negative) as descriptor 3; nothing else is inherited. The process's number.
long host_spawn(const char *_Nonnull program, const char *_Nullable const *_Nonnull arguments,
                const char *_Nullable const *_Nonnull environment, int input, int output, int extra);
/// A descriptor that becomes readable when the child has ended (pidfd_open(2)).
long host_process_descriptor(int pid);
/// The child's wait status once it has ended; -EAGAIN before.
long host_process_status(int pid, int *_Nonnull status);
/// Signals the child's process group.
long host_signal_group(int pid, int signal);
/// Both ends of a pipe, closed on exec.
long host_pipe(int *_Nonnull reading, int *_Nonnull writing);

// MARK: Directories and files

long host_make_directory(const char *_Nonnull path, unsigned mode);
long host_remove_directory(const char *_Nonnull path);
/// Past the umask.
long host_change_mode(const char *_Nonnull path, unsigned mode);
/// A directory, for the names in it.
long host_open_directory(const char *_Nonnull path);
/// Bytes that an ordinary user may still write to the file system of `path`.
long host_free_space(const char *_Nonnull path, uint64_t *_Nonnull bytes);
/// A new file in the directory, without a name, for reading and writing.
long host_open_unnamed(const char *_Nonnull directory);

#endif
