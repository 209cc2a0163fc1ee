//! A guest's own guest.

use payload_rt::svm::{self, exit};
use payload_rt::vmx::{self, Reason, Vm};
use payload_rt::{asm_code, check_eq, cpuid, skip, test};

use crate::rounds;

test!(nested, "Into a guest's own guest, and out again by its hypercall.", || {
    if cpuid::SVM.present() {
        svm::enable();
        let mut guest = svm::Guest::new(asm_code!("2: vmmcall", "jmp 2b"));
        rounds(|| {
            guest.run();
            // VMMCALL has three bytes.
            guest.skip(3);
        });
        check_eq!(guest.run().code, exit::VMMCALL);
    } else if cpuid::VMX.present() {
        vmx::enable();
        let mut vm = Vm::new();
        vm.start(asm_code!("2: vmcall", "jmp 2b"));
        rounds(|| {
            let exit = vm.run();
            vm.skip(&exit);
        });
        check_eq!(vm.run().reason, Reason::VMCALL);
    } else {
        skip!("the processor has neither VMX nor SVM for a guest of its own");
    }
});
