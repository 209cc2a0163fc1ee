# Into a guest of our own and out of it (rt/src/vmx/guest.rs). AT&T syntax.

    .section .text.rt_vmx, "ax", @progbits
    .code64

# Enters the current VMCS with the registers of the `Regs` at RDI: by VMLAUNCH if RSI is 0, else by
# VMRESUME. RDX gets RFLAGS as they were behind the VM exit, or behind the instruction that failed.
# Returns 0 after a VM exit, which comes to rt_vmx_exit with the guest's registers; 1 if the
# instruction failed or trapped (it is an `insn!` range). Interrupts are as they were.
    .global rt_vmx_enter
    .global rt_vmx_exit
rt_vmx_enter:
    pushq   %rbp
    pushq   %rbx
    pushq   %r12
    pushq   %r13
    pushq   %r14
    pushq   %r15
    pushfq
    pushq   %rdx
    pushq   %rdi
    movl    $0x6c14, %eax                   # HOST_RSP; without a current VMCS the entry fails, too
    vmwrite %rsp, %rax
    testl   %esi, %esi
    movq    0(%rdi), %rax
    movq    8(%rdi), %rbx
    movq    16(%rdi), %rcx
    movq    24(%rdi), %rdx
    movq    32(%rdi), %rsi
    movq    48(%rdi), %rbp
    movq    56(%rdi), %r8
    movq    64(%rdi), %r9
    movq    72(%rdi), %r10
    movq    80(%rdi), %r11
    movq    88(%rdi), %r12
    movq    96(%rdi), %r13
    movq    104(%rdi), %r14
    movq    112(%rdi), %r15
    movq    40(%rdi), %rdi
771:
    jnz     1f
    vmlaunch
    jmp     772f
1:  vmresume
772:
    .pushsection .exitlab.extable, "a", @progbits
    .balign 4
    .long   771b - .
    .long   772b - .
    .popsection
    pushfq
    popq    %rax
    addq    $8, %rsp
    popq    %rdx
    movq    %rax, (%rdx)
    movl    $1, %eax
    jmp     2f
rt_vmx_exit:
    pushfq
    pushq   %rdi
    movq    16(%rsp), %rdi
    movq    %rax, 0(%rdi)
    movq    %rbx, 8(%rdi)
    movq    %rcx, 16(%rdi)
    movq    %rdx, 24(%rdi)
    movq    %rsi, 32(%rdi)
    popq    40(%rdi)
    movq    %rbp, 48(%rdi)
    movq    %r8, 56(%rdi)
    movq    %r9, 64(%rdi)
    movq    %r10, 72(%rdi)
    movq    %r11, 80(%rdi)
    movq    %r12, 88(%rdi)
    movq    %r13, 96(%rdi)
    movq    %r14, 104(%rdi)
    movq    %r15, 112(%rdi)
    popq    %rax
    addq    $8, %rsp
    popq    %rdx
    movq    %rax, (%rdx)
    xorl    %eax, %eax
2:  popfq
    popq    %r15
    popq    %r14
    popq    %r13
    popq    %r12
    popq    %rbx
    popq    %rbp
    ret

# Where a guest starts that is a Rust function: RAX the function, RDI its argument. Its value is in
# RAX at the VMCALL.
    .global rt_vmx_thunk
    .global rt_vmx_done
rt_vmx_thunk:
    call    *%rax
rt_vmx_done:
    vmcall
    ud2
