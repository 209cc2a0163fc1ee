# One stub a vector, 16 bytes apart (rt/src/idt.rs computes their addresses), all leading to
# rt_trap_common, which completes a `Frame` and calls the Rust side. AT&T syntax.

    .section .stubs, "ax", @progbits
    .code64
    .balign 4096
    .global rt_trap_stubs
rt_trap_stubs:
    .set    i, 0
    .rept   256
    .balign 16
    # These push an error code of their own (Intel SDM volume 3, 7.3; AMD APM volume 2, 8.2).
    .if (i == 8) || ((i >= 10) && (i <= 14)) || (i == 17) || (i == 21) || (i == 29) || (i == 30)
    .else
    pushq   $0
    .endif
    pushq   $i
    jmp     rt_trap_common
    .set    i, i + 1
    .endr

    .section .text.rt_traps, "ax", @progbits
    .global rt_trap_common
# The CPU aligned the stack to 16 before it pushed five words; with two from the stub and
# fifteen here it is aligned again at the call.
rt_trap_common:
    pushq   %rax
    pushq   %rcx
    pushq   %rdx
    pushq   %rbx
    pushq   %rbp
    pushq   %rsi
    pushq   %rdi
    pushq   %r8
    pushq   %r9
    pushq   %r10
    pushq   %r11
    pushq   %r12
    pushq   %r13
    pushq   %r14
    pushq   %r15
    cld
    movq    %rsp, %rdi
    call    {trap}
    popq    %r15
    popq    %r14
    popq    %r13
    popq    %r12
    popq    %r11
    popq    %r10
    popq    %r9
    popq    %r8
    popq    %rdi
    popq    %rsi
    popq    %rbp
    popq    %rbx
    popq    %rdx
    popq    %rcx
    popq    %rax
    addq    $16, %rsp
    iretq

# Calls RDI(RSI) such that a trap inside can come back to rt_catch_landing. The record at RDX
# gets the stack pointer to come back with. Returns 0, or what the trap handler put into RAX.
    .global rt_catch_call
    .global rt_catch_landing
rt_catch_call:
    pushq   %rbp
    pushq   %rbx
    pushq   %r12
    pushq   %r13
    pushq   %r14
    pushq   %r15
    pushfq
    movq    %rsp, (%rdx)
    movq    %rdi, %rax
    movq    %rsi, %rdi
    call    *%rax
    xorl    %eax, %eax
rt_catch_landing:
    popfq
    popq    %r15
    popq    %r14
    popq    %r13
    popq    %r12
    popq    %rbx
    popq    %rbp
    ret

# Goes to CPL 3 with the registers of the `Frame` at RDI; a trap from there comes back to
# rt_catch_landing as above. RSI gets the stack pointer for that, RDX is where TSS.RSP0 lies.
    .global rt_enter_user
rt_enter_user:
    pushq   %rbp
    pushq   %rbx
    pushq   %r12
    pushq   %r13
    pushq   %r14
    pushq   %r15
    pushfq
    movq    %rsp, (%rsi)
    movq    %rsp, (%rdx)
    pushq   168(%rdi)                       # SS, RSP, RFLAGS, CS, RIP for iretq
    pushq   160(%rdi)
    pushq   152(%rdi)
    pushq   144(%rdi)
    pushq   136(%rdi)
    movq    0(%rdi), %r15
    movq    8(%rdi), %r14
    movq    16(%rdi), %r13
    movq    24(%rdi), %r12
    movq    32(%rdi), %r11
    movq    40(%rdi), %r10
    movq    48(%rdi), %r9
    movq    56(%rdi), %r8
    movq    72(%rdi), %rsi
    movq    80(%rdi), %rbp
    movq    88(%rdi), %rbx
    movq    96(%rdi), %rdx
    movq    104(%rdi), %rcx
    movq    112(%rdi), %rax
    movq    64(%rdi), %rdi
    iretq

# Where `syscall` from CPL 3 arrives: makes it look like a trap of vector 256. The kernel's GS
# base leads to the CPU's block while a CPL 3 excursion that allows `syscall` is under way.
    .global rt_syscall_entry
rt_syscall_entry:
    swapgs
    movq    %rsp, %gs:{scratch}
    movq    %gs:{user_rsp}, %rsp
    andq    $-16, %rsp
    pushq   $0x23
    pushq   %gs:{scratch}
    swapgs
    pushq   %r11
    pushq   $0x2b
    pushq   %rcx
    pushq   $0
    pushq   $256
    jmp     rt_trap_common

# Runs a Rust function at CPL 3 (RAX the function, RDI its argument). Its value is in RAX at the
# trap that ends the excursion; rt::user knows the address.
    .global rt_user_thunk
    .global rt_user_done
rt_user_thunk:
    andq    $-16, %rsp
    call    *%rax
rt_user_done:
    ud2
