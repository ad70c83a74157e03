// SPDX-License-Identifier: Apache-2.0
/*
 * Alters a few bytes of a running kernel, so that a test can see whether the measurement names them.
 *
 * For throw-away emulated test guests only: it is loaded by hand, as root, inside a guest that lives for minutes. It
 * hides nothing, hooks nothing and stays nowhere: the init function writes the bytes and then fails on purpose, so
 * that the kernel unloads the module at once and the altered bytes are the only thing left to find.
 *
 * insmod tamper.ko address=0x<from /proc/kallsyms> offset=0x<n> bytes=<hex>
 */
#include <linux/errno.h>
#include <linux/kernel.h>
#include <linux/module.h>
#include <linux/string.h>

#define MOST_BYTES 64

static unsigned long address;
module_param(address, ulong, 0);
MODULE_PARM_DESC(address, "live address of the symbol");

static unsigned long offset;
module_param(offset, ulong, 0);
MODULE_PARM_DESC(offset, "offset of the first byte from the symbol");

static char *bytes = "";
module_param(bytes, charp, 0);
MODULE_PARM_DESC(bytes, "the new bytes, in hexadecimal");

/* Kernel text is mapped read-only: clear CR0.WP (bit 16) for the length of the copy, on this CPU, undisturbed. */
static void write_through(unsigned char *to, const unsigned char *from, unsigned long count)
{
	unsigned long flags, cr0;
	unsigned long i;

	asm volatile("pushf; pop %0; cli" : "=rm"(flags) : : "memory");
	asm volatile("mov %%cr0, %0" : "=r"(cr0));
	asm volatile("mov %0, %%cr0" : : "r"(cr0 & ~(1UL << 16)) : "memory");
	for (i = 0; i < count; i++)
		((volatile unsigned char *)to)[i] = from[i];
	asm volatile("mov %0, %%cr0" : : "r"(cr0) : "memory");
	asm volatile("push %0; popf" : : "rm"(flags) : "memory", "cc");
}

static int __init tamper_init(void)
{
	unsigned char value[MOST_BYTES];
	unsigned long count = strlen(bytes) / 2;

	if (!address || !count || count > MOST_BYTES || strlen(bytes) % 2 || hex2bin(value, bytes, count))
		return -EINVAL;
	write_through((unsigned char *)address + offset, value, count);
	return -EAGAIN;
}

module_init(tamper_init);
MODULE_DESCRIPTION("Alters bytes of a test guest's kernel");
MODULE_LICENSE("Apache-2.0");
