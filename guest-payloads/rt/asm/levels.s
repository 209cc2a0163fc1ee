# Between four and five levels of paging, out of long mode and back in (Intel SDM volume 3, 5.1.1 and
# 11.8.5; AMD APM volume 2, 5.3.1 and 14.7). AT&T syntax.

    .section .text.rt_levels, "ax", @progbits
    .code64
    .balign 8
rt_levels_out:
    .long   rt_levels_legacy, 0x30

# RDI: the new CR3, below 4 GiB. RSI: the new CR4. The code, the stack and the GDT are below 4 GiB and mapped
# to themselves, so that they stay where they are while there is no paging. Nothing but the stack is kept in
# memory: each CPU may come here.
    .global rt_set_levels
rt_set_levels:
    pushq   %rbp
    pushq   %rbx
    pushq   %r12
    pushq   %r13
    pushq   %r14
    pushq   %r15
    pushfq
    cli
    ljmpl   *rt_levels_out

rt_levels_long:
    movl    %esp, %esp                      # the upper halves mean nothing after legacy mode
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
rt_levels_legacy:
    movl    %cr0, %edx
    movl    %edx, %eax
    andl    $0x7fffffff, %eax
    movl    %eax, %cr0                      # clears EFER.LMA; LME stays
    movl    %esi, %cr4
    movl    %edi, %cr3
    movl    %edx, %cr0
    ljmpl   $0x08, $rt_levels_long
    .code64
