// A TCG plugin for qemu's user mode that counts guest instructions into a file.
//
//   gcc -O2 -shared -fPIC count_instructions.c -o count_instructions.so
//   qemu-aarch64 -plugin count_instructions.so,counter=FILE program
//
// FILE has 8 bytes or more, of which the first eight are the count. The program under emulation can map the same file and read
// it at any point: the difference of two readings is what ran between them. Instructions of a translation block are counted
// when it is entered. Exact for one thread; threads of a program add to the same number without a lock.
#include <fcntl.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

// What is used of qemu-plugin.h (API version 1), which Debian packages in no form.
typedef uint64_t qemu_plugin_id_t;
struct qemu_plugin_tb;
enum qemu_plugin_op { QEMU_PLUGIN_INLINE_ADD_U64 };
typedef void (*qemu_plugin_vcpu_tb_trans_cb_t)(qemu_plugin_id_t id, struct qemu_plugin_tb *tb);
extern void qemu_plugin_register_vcpu_tb_trans_cb(qemu_plugin_id_t id, qemu_plugin_vcpu_tb_trans_cb_t cb);
extern void qemu_plugin_register_vcpu_tb_exec_inline(struct qemu_plugin_tb *tb, enum qemu_plugin_op op, void *ptr,
                                                     uint64_t imm);
extern size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *tb);

int qemu_plugin_version = 1;

static uint64_t *count;

static void translated(qemu_plugin_id_t id, struct qemu_plugin_tb *tb) {
  (void)id;
  qemu_plugin_register_vcpu_tb_exec_inline(tb, QEMU_PLUGIN_INLINE_ADD_U64, count, qemu_plugin_tb_n_insns(tb));
}

int qemu_plugin_install(qemu_plugin_id_t id, const void *info, int argc, char **argv) {
  static const char key[] = "counter=";
  (void)info;
  if (argc != 1 || strncmp(argv[0], key, sizeof key - 1) != 0) return -1;
  int file = open(argv[0] + sizeof key - 1, O_RDWR);
  if (file < 0) return -1;
  count = mmap(NULL, sizeof *count, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  close(file);
  if (count == MAP_FAILED) return -1;
  qemu_plugin_register_vcpu_tb_trans_cb(id, translated);
  return 0;
}
