# Out of long mode, into code in legacy mode, and back at its first trap (Intel SDM volume 3, 11.8.5.4 and
# 11.9.2; AMD APM volume 2, 14.7). AT&T syntax. The layout of the state is `State` in rt/src/legacy/mod.rs.

    .set rt_legacy_state, {state}
    .set STATE_EAX, {state}
    .set STATE_ECX, {state} + 0x04
    .set STATE_EDX, {state} + 0x08
    .set STATE_EBX, {state} + 0x0c
    .set STATE_ESP, {state} + 0x10
    .set STATE_EBP, {state} + 0x14
    .set STATE_ESI, {state} + 0x18
    .set STATE_EDI, {state} + 0x1c
    .set STATE_EIP, {state} + 0x20
    .set STATE_EFLAGS, {state} + 0x24
    .set STATE_ES, {state} + 0x28
    .set STATE_CS, {state} + 0x2c
    .set STATE_SS, {state} + 0x30
    .set STATE_DS, {state} + 0x34
    .set STATE_FS, {state} + 0x38
    .set STATE_GS, {state} + 0x3c
    .set STATE_LDTR, {state} + 0x40
    .set STATE_TR, {state} + 0x44
    .set STATE_CR0, {state} + 0x48
    .set STATE_CR3, {state} + 0x4c
    .set STATE_CR4, {state} + 0x50
    .set STATE_WAY, {state} + 0x54
    .set STATE_CACHED, {state} + 0x58
    .set STATE_VECTOR, {state} + 0x5c
    .set STATE_ERROR, {state} + 0x60
    .set STATE_INNER_ESP, {state} + 0x64
    .set STATE_INNER_SS, {state} + 0x68
    .set STATE_GDTR, {state} + 0x6e         # so that the bases are aligned
    .set STATE_IDTR, {state} + 0x76
    .set SAVED_RSP, {state} + 0x80
    .set SAVED_CR0, {state} + 0x88
    .set SAVED_CR3, {state} + 0x90
    .set SAVED_CR4, {state} + 0x98
    .set SAVED_EFER, {state} + 0xa0
    .set SAVED_GDTR, {state} + 0xae
    .set SAVED_IDTR, {state} + 0xbe
    .set SAVED_TR, {state} + 0xc8

    .section .text.rt_legacy, "ax", @progbits
    .code64
    .global rt_legacy_run
rt_legacy_run:
    pushq   %rbp
    pushq   %rbx
    pushq   %r12
    pushq   %r13
    pushq   %r14
    pushq   %r15
    pushfq
    cli
    movq    %rsp, SAVED_RSP
    movq    %cr0, %rax
    movq    %rax, SAVED_CR0
    movq    %cr3, %rax
    movq    %rax, SAVED_CR3
    movq    %cr4, %rax
    movq    %rax, SAVED_CR4
    movl    $0xc0000080, %ecx
    rdmsr
    movl    %eax, SAVED_EFER
    movl    %edx, SAVED_EFER + 4
    sgdt    SAVED_GDTR
    sidt    SAVED_IDTR
    str     SAVED_TR
    ljmpl   *rt_legacy_pointer

rt_legacy_long:
    movl    $0x10, %eax
    movl    %eax, %ds
    movl    %eax, %es
    movl    %eax, %ss
    xorl    %eax, %eax
    movl    %eax, %fs
    movl    %eax, %gs
    movq    SAVED_RSP, %rsp
    lgdt    SAVED_GDTR
    lidt    SAVED_IDTR
    lldt    %ax
    movq    SAVED_GDTR + 2, %rax
    movzwl  SAVED_TR, %ecx
    andb    $0xfd, 5(%rax,%rcx)             # available again, or LTR would not take it
    ltr     %cx
    popfq
    popq    %r15
    popq    %r14
    popq    %r13
    popq    %r12
    popq    %rbx
    popq    %rbp
    ret

    .section .boot, "ax", @progbits
    .code32
rt_legacy_enter:
    movl    %cr0, %eax
    andl    $0x7fffffff, %eax
    movl    %eax, %cr0
    movl    $0xc0000080, %ecx
    rdmsr
    andl    $0xfffffeff, %eax               # EFER.LME
    wrmsr
    movl    STATE_CR4, %eax
    movl    %eax, %cr4
    movl    STATE_CR3, %eax
    movl    %eax, %cr3
    lgdt    STATE_GDTR
    lidt    STATE_IDTR
    movl    $0x10, %eax
    movl    %eax, %ds
    movl    %eax, %es
    movl    %eax, %ss
    movl    STATE_CR0, %eax
    movl    STATE_WAY, %edx
    cmpl    $2, %edx
    je      rt_legacy_to_real
    movl    %eax, %cr0
    ljmpl   $0x30, $1f
1:  lldt    STATE_LDTR
    cmpw    $0, STATE_TR
    je      1f
    ltr     STATE_TR
1:  cmpl    $3, %edx
    je      1f                              # there IRET loads them
    movl    STATE_ES, %eax
    movl    %eax, %es
    movl    STATE_FS, %eax
    movl    %eax, %fs
    movl    STATE_GS, %eax
    movl    %eax, %gs
1:  movl    STATE_ECX, %ecx
    movl    STATE_EBX, %ebx
    movl    STATE_EBP, %ebp
    movl    STATE_ESI, %esi
    movl    STATE_EDI, %edi
    testl   %edx, %edx
    jnz     rt_legacy_outward
    # At CPL 0, on the stack of the code. The flags before the jump: so IRET need not be known, which
    # some emulators do not.
    movl    STATE_EDX, %edx
    movl    STATE_SS, %eax
    movl    %eax, %ss
    movl    STATE_ESP, %esp
    pushl   STATE_CS
    pushl   STATE_EIP
    pushl   STATE_EFLAGS
    pushl   STATE_EAX
    pushl   STATE_DS
    popl    %ds
    popl    %eax
    popfl
    lretl

# By IRET to an outer CPL (1) or to virtual-8086 mode (3), from the stack of the runtime.
rt_legacy_outward:
    pushl   STATE_GS
    pushl   STATE_FS
    pushl   STATE_DS
    pushl   STATE_ES
    pushl   STATE_SS
    pushl   STATE_ESP
    pushl   STATE_EFLAGS
    pushl   STATE_CS
    pushl   STATE_EIP
    pushl   STATE_EAX
    cmpl    $3, %edx
    movl    STATE_EDX, %edx
    je      1f
    pushl   STATE_DS
    popl    %ds
1:  popl    %eax
    iretl

# EAX is CR0 without PE. The data segments get what the state names as their cached descriptor.
rt_legacy_to_real:
    movl    STATE_CACHED, %ebx
    ljmpl   ${real_code}, $0

# Where the stubs of a protected-mode IDT lead: CS is flat, SS anything, and on the stack lie DS and EAX
# of the code under test last.
    .global rt_legacy_trap
rt_legacy_trap:
    pushl   %eax
    pushl   %ds
    movl    $0x10, %eax
    movl    %eax, %ds
    popl    STATE_DS
    popl    STATE_EAX
    popl    STATE_VECTOR
    popl    STATE_ERROR
    popl    STATE_EIP
    popl    STATE_CS
    popl    STATE_EFLAGS
    movl    %ecx, STATE_ECX
    movl    %edx, STATE_EDX
    movl    %ebx, STATE_EBX
    movl    %ebp, STATE_EBP
    movl    %esi, STATE_ESI
    movl    %edi, STATE_EDI
    movl    %es, %eax
    movl    %eax, STATE_ES
    movl    %fs, %eax
    movl    %eax, STATE_FS
    movl    %gs, %eax
    movl    %eax, STATE_GS
    movl    %esp, STATE_ESP
    movl    %ss, %eax
    movl    %eax, STATE_SS
    movl    %eax, STATE_INNER_SS
    testl   $0x20000, STATE_EFLAGS          # VM
    jnz     1f
    testb   $3, STATE_CS
    jz      3f
    jmp     2f
1:  movl    8(%esp), %eax
    movl    %eax, STATE_ES
    movl    12(%esp), %eax
    movl    %eax, STATE_DS
    movl    16(%esp), %eax
    movl    %eax, STATE_FS
    movl    20(%esp), %eax
    movl    %eax, STATE_GS
    addl    $16, STATE_INNER_ESP
2:  popl    STATE_ESP
    popl    STATE_SS
3:  addl    %esp, STATE_INNER_ESP
    movl    %cr0, %eax
    movl    %eax, STATE_CR0
    movl    %cr3, %eax
    movl    %eax, STATE_CR3
    xorl    %eax, %eax
    sldt    %ax
    movl    %eax, STATE_LDTR
    str     %ax
    movl    %eax, STATE_TR
    # Falls into the way back.

rt_legacy_back:
    lgdt    rt_legacy_boot_gdt
    ljmpl   $0x30, $1f
1:  movl    $0x10, %eax
    movl    %eax, %ss
    movl    SAVED_RSP, %esp
    movl    %cr0, %eax
    andl    $0x7fffffff, %eax
    movl    %eax, %cr0
    movl    SAVED_CR4, %eax
    movl    %eax, %cr4
    movl    SAVED_CR3, %eax
    movl    %eax, %cr3
    movl    $0xc0000080, %ecx
    movl    SAVED_EFER, %eax
    movl    SAVED_EFER + 4, %edx
    wrmsr
    movl    SAVED_CR0, %eax
    movl    %eax, %cr0
    ljmpl   $0x08, $rt_legacy_long

# From real mode, by the common code below.
rt_legacy_from_real:
    movl    $0x10, %eax
    movl    %eax, %ds
    movl    %eax, %es
    movl    %eax, %ss
    jmp     rt_legacy_back
    .code64

# Copied to the real-mode segment below 1 MiB, at its start.
    .section .trampoline, "ax", @progbits
    .code16
    .global rt_legacy_real
    .global rt_legacy_real_trap
    .global rt_legacy_real_end
rt_legacy_real:
    movw    %bx, %ds
    movw    %bx, %es
    movw    %bx, %fs
    movw    %bx, %gs
    movw    %bx, %ss
    movl    %eax, %cr0
    ljmpw   ${real_segment}, $(1f - rt_legacy_real)
1:  movw    ${low_segment}, %ax
    movw    %ax, %ds
    movw    STATE_ES - {low}, %es
    movw    STATE_FS - {low}, %fs
    movw    STATE_GS - {low}, %gs
    movl    STATE_ECX - {low}, %ecx
    movl    STATE_EDX - {low}, %edx
    movl    STATE_EBX - {low}, %ebx
    movl    STATE_EBP - {low}, %ebp
    movl    STATE_ESI - {low}, %esi
    movl    STATE_EDI - {low}, %edi
    movw    STATE_SS - {low}, %ss
    movl    STATE_ESP - {low}, %esp
    pushw   STATE_CS - {low}
    pushw   STATE_EIP - {low}
    pushw   STATE_EFLAGS - {low}
    pushl   STATE_EAX - {low}
    pushw   STATE_DS - {low}
    popw    %ds
    popl    %eax
    popfw
    lretw

# Where the stubs of the interrupt table lead; the stack begins with the vector.
rt_legacy_real_trap:
    pushw   %ds
    pushl   %eax
    movw    ${low_segment}, %ax
    movw    %ax, %ds
    popl    STATE_EAX - {low}
    popw    STATE_DS - {low}
    popw    STATE_VECTOR - {low}
    popw    STATE_EIP - {low}
    popw    STATE_CS - {low}
    popw    STATE_EFLAGS - {low}
    movl    %esp, STATE_ESP - {low}
    movl    %ecx, STATE_ECX - {low}
    movl    %edx, STATE_EDX - {low}
    movl    %ebx, STATE_EBX - {low}
    movl    %ebp, STATE_EBP - {low}
    movl    %esi, STATE_ESI - {low}
    movl    %edi, STATE_EDI - {low}
    movw    %es, STATE_ES - {low}
    movw    %fs, STATE_FS - {low}
    movw    %gs, STATE_GS - {low}
    movw    %ss, STATE_SS - {low}
    lgdtl   STATE_GDTR - {low}
    movl    %cr0, %eax
    movl    %eax, STATE_CR0 - {low}
    orl     $1, %eax
    movl    %eax, %cr0
    ljmpl   $0x30, $rt_legacy_from_real
rt_legacy_real_end:
    .code64

    .section .data.rt_legacy, "aw", @progbits
    .balign 4
rt_legacy_pointer:
    .long   rt_legacy_enter
    .word   0x30
rt_legacy_boot_gdt:
    .word   0x37
    .long   rt_boot_gdt
