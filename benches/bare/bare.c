/*
 * The least that a VMM can do before its guest's first byte is out: what `cargo xtask bench start` holds others
 * against. It makes a VM with 256 MiB, the kernel's interrupt controllers and one vCPU, tells the vCPU
 * of CPUID what KVM offers, starts the flat image in real mode at 1000:0000, and writes what that writes to port
 * 0x3f8. It asks for no capability, has no device, no thread and no option but one:
 *
 * bare IMAGE [no-cpuid]
 *
 * Without CPUID no guest but one that never asks could run; where a hypervisor below intercepts that instruction, it
 * takes KVM the longest.
 *
 * A VM without interrupt controllers would have KVM patch its own code for the first vCPU without a local APIC,
 * which takes longer than to make them.
 */
#include <fcntl.h>
#include <linux/kvm.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#define MEMORY (256ul << 20)
#define START 0x10000ul
#define LEAVES 256

static int failed(const char *what)
{
	perror(what);
	return 2;
}

int main(int count, char **words)
{
	int image, kvm, vm, vcpu, size;
	char *memory;
	struct kvm_run *run;
	struct kvm_sregs sregs;
	struct kvm_regs regs = { .rip = 0, .rflags = 2 };

	if (count < 2) {
		fprintf(stderr, "bare IMAGE [no-cpuid]\n");
		return 2;
	}
	memory = mmap(NULL, MEMORY, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (memory == MAP_FAILED)
		return failed("mmap of guest memory");
	image = open(words[1], O_RDONLY | O_CLOEXEC);
	if (image < 0 || read(image, memory + START, 0x10000) <= 0)
		return failed(words[1]);
	kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	if (kvm < 0)
		return failed("/dev/kvm");
	vm = ioctl(kvm, KVM_CREATE_VM, 0);
	if (vm < 0)
		return failed("KVM_CREATE_VM");
	/* KVM on Intel asks for it. */
	if (ioctl(vm, KVM_SET_TSS_ADDR, 0xfffbd000ul))
		return failed("KVM_SET_TSS_ADDR");
	struct kvm_userspace_memory_region region = {
		.memory_size = MEMORY, .userspace_addr = (unsigned long)memory,
	};
	if (ioctl(vm, KVM_SET_USER_MEMORY_REGION, &region))
		return failed("KVM_SET_USER_MEMORY_REGION");
	if (ioctl(vm, KVM_CREATE_IRQCHIP, 0))
		return failed("KVM_CREATE_IRQCHIP");
	vcpu = ioctl(vm, KVM_CREATE_VCPU, 0);
	if (vcpu < 0)
		return failed("KVM_CREATE_VCPU");
	if (count == 2) {
		struct kvm_cpuid2 *cpuid = calloc(1, sizeof(*cpuid) + LEAVES * sizeof(cpuid->entries[0]));

		if (!cpuid)
			return failed("memory for CPUID");
		cpuid->nent = LEAVES;
		if (ioctl(kvm, KVM_GET_SUPPORTED_CPUID, cpuid))
			return failed("KVM_GET_SUPPORTED_CPUID");
		if (ioctl(vcpu, KVM_SET_CPUID2, cpuid))
			return failed("KVM_SET_CPUID2");
	}
	size = ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0);
	run = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu, 0);
	if (run == MAP_FAILED)
		return failed("mmap of the vCPU");
	if (ioctl(vcpu, KVM_GET_SREGS, &sregs))
		return failed("KVM_GET_SREGS");
	sregs.cs.selector = START >> 4;
	sregs.cs.base = START;
	if (ioctl(vcpu, KVM_SET_SREGS, &sregs))
		return failed("KVM_SET_SREGS");
	if (ioctl(vcpu, KVM_SET_REGS, &regs))
		return failed("KVM_SET_REGS");
	for (;;) {
		if (ioctl(vcpu, KVM_RUN, 0))
			return failed("KVM_RUN");
		if (run->exit_reason == KVM_EXIT_IO) {
			if (run->io.port == 0x3f8 && run->io.direction == KVM_EXIT_IO_OUT)
				if (write(1, (char *)run + run->io.data_offset, 1) != 1)
					return failed("standard output");
		} else if (run->exit_reason != KVM_EXIT_MMIO) {
			fprintf(stderr, "exit %u\n", run->exit_reason);
			return 2;
		}
	}
}
