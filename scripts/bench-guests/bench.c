// Usage: bench [--budget MILLISECONDS] [--rows PATTERN[,PATTERN…]] [--list]
//
// Prints for each row
//     row NAME NANOSECONDS OPERATION CHECKSUM
// where the checksum depends on the work alone, so that it must be the same natively and in every guest; "-" as value
// and checksum says that the processor lacks what the row needs, and
//     failed NAME WHY
// that it could not be measured. As the first process of a guest it says "bench-init" before anything else and
// switches the machine off at the end.
#define _GNU_SOURCE
#include "bench.h"

#include <errno.h>
#include <fnmatch.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

static const struct row *const families[] = {compute_rows, mixed_rows, memory_rows, vector_rows, kernel_rows};

enum { slices = 5 };

void give_up(const char *what) {
    fprintf(stderr, "bench: %s: %s\n", what, strerror(errno));
    _exit(1);
}

void *allocate(size_t size) {
    void *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
    if (memory == MAP_FAILED) give_up("mmap");
    return memory;
}

static double now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec * 1e9 + (double)time.tv_nsec;
}

// --- One row ---------------------------------------------------------------------------------------------------------

struct measurement {
    const struct row *row;
    uint64_t checksum;
    bool is_wrong;
};

/// The time of `count` units. Each of them must give the same checksum.
static double time_units(struct measurement *measurement, long count) {
    double start = now();
    for (long i = 0; i < count; i++) {
        if (measurement->row->unit() != measurement->checksum) measurement->is_wrong = true;
    }
    return now() - start;
}

static int compare_doubles(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/// Nanoseconds for one operation: the median of a few slices of the budget. What comes before them finds out how many
/// units fit and warms everything up; it takes a quarter of the budget, or one unit where that is longer.
static double measure(struct measurement *measurement, double budget) {
    double warm_up = budget / 4, spent = 0, time = 0;
    long count = 1, done = 0;
    for (; spent < warm_up; count *= 2) {
        time = time_units(measurement, count);
        spent += time;
        done = count;
    }
    long count_of_slice = (long)(budget / slices / (time / (double)done));
    if (count_of_slice < 1) count_of_slice = 1;
    // A unit longer than a slice gets fewer of them, so that the row still ends in time.
    double times[slices];
    int measured = 0;
    for (double all = 0; measured < slices && (measured == 0 || all < budget * 1.5); measured++) {
        times[measured] = time_units(measurement, count_of_slice);
        all += times[measured];
    }
    qsort(times, (size_t)measured, sizeof *times, compare_doubles);
    return times[measured / 2] / (double)count_of_slice / measurement->row->operations;
}

static void use_one_processor(void) {
    cpu_set_t set;
    int processor = sched_getcpu();
    CPU_ZERO(&set);
    CPU_SET(processor < 0 ? 0 : processor, &set);
    if (sched_setaffinity(0, sizeof set, &set) != 0) give_up("sched_setaffinity");
}

static void run_row(const struct row *row, double budget) {
    struct measurement measurement = {.row = row};
    if (row->on_one_processor) use_one_processor();
    if (row->prepare && !row->prepare()) {
        printf("row %s - %s -\n", row->name, row->operation);
        return;
    }
    measurement.checksum = row->unit();
    double value = measure(&measurement, budget);
    if (row->finish) row->finish();
    if (measurement.is_wrong) {
        printf("failed %s the same work gave different results\n", row->name);
    } else {
        printf("row %s %.3f %s %016llx\n", row->name, value, row->operation,
               (unsigned long long)measurement.checksum);
    }
}

/// A process of its own for each row: its memory is not the next one's, and it may fail alone.
static void run_row_apart(const struct row *row, double budget) {
    int status;
    fflush(stdout);
    pid_t child = fork();
    if (child < 0) give_up("fork");
    if (child == 0) {
        run_row(row, budget);
        fflush(stdout);
        _exit(0);
    }
    if (waitpid(child, &status, 0) != child) give_up("waitpid");
    if (WIFSIGNALED(status)) printf("failed %s signal %d\n", row->name, WTERMSIG(status));
    if (WIFEXITED(status) && WEXITSTATUS(status) != 0) printf("failed %s status %d\n", row->name, WEXITSTATUS(status));
    fflush(stdout);
}

// --- All rows --------------------------------------------------------------------------------------------------------

static bool is_selected(const char *name, const char *patterns) {
    if (!patterns) return true;
    char *list = strdup(patterns);
    bool result = false;
    for (char *next = list, *pattern; !result && (pattern = strsep(&next, ","));) {
        result = fnmatch(pattern, name, 0) == 0;
    }
    free(list);
    return result;
}

static void run_rows(const char *patterns, double budget, bool lists_only) {
    for (size_t family = 0; family < sizeof families / sizeof *families; family++) {
        for (const struct row *row = families[family]; row->name; row++) {
            if (!is_selected(row->name, patterns)) continue;
            if (lists_only) {
                printf("%s\n", row->name);
            } else {
                run_row_apart(row, budget);
            }
        }
    }
    printf("bench-end\n");
}

/// What the first process of a guest has to do for the others.
static void prepare_guest(void) {
    printf("bench-init\n");
    fflush(stdout);
    mkdir("/proc", 0755);
    if (mount("proc", "/proc", "proc", 0, NULL) != 0 && errno != EBUSY) give_up("mount /proc");
}

static void switch_off(void) {
    fflush(stdout);
    tcdrain(STDOUT_FILENO);
    reboot(RB_POWER_OFF);
    give_up("reboot");
}

int main(int argc, char **argv) {
    if (argc == 2 && strcmp(argv[1], EXEC_CHILD) == 0) return EXEC_CHILD_STATUS;
    bool is_first_process = getpid() == 1, lists_only = false;
    const char *patterns = NULL;
    double budget = 300;
    for (int i = 1; i < argc; i++) {
        bool has_value = i + 1 < argc;
        if (strcmp(argv[i], "--list") == 0) {
            lists_only = true;
        } else if (has_value && strcmp(argv[i], "--rows") == 0) {
            patterns = argv[++i];
        } else if (has_value && strcmp(argv[i], "--budget") == 0) {
            budget = atof(argv[++i]);
        } else if (!is_first_process) {
            fprintf(stderr, "bench: what is %s?\n", argv[i]);
            return 64;
        }
    }
    if (!(budget >= 1 && budget <= 60000)) budget = 300;
    if (is_first_process) prepare_guest();
    // Pages of 4 KiB on every kernel: what a huge page saves is not what the rows are about.
    prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0);
    run_rows(patterns, budget * 1e6, lists_only);
    if (is_first_process) switch_off();
    return 0;
}
