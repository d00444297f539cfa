//! Programs that the kernel rejects.

use object::{Object as _, ObjectSection as _};
use overlay_agent::{
    datapath::{Attachment, DatapathError, XdpMode},
    object::OBJECT,
};
use overlay_common::outcome::Hook;
use overlay_tests::seccomp::{BpfDenial, deny_bpf_here};

use super::sandbox::{at, output, refusal, sandbox, try_open, veth};

/// The object with an `exit` as the first instruction of the sections: nothing behind it can be
/// reached.
fn with_rejected_programs(sections: &[&str]) -> Vec<u8> {
    const EXIT: [u8; 8] = [0x95, 0, 0, 0, 0, 0, 0, 0];
    let mut object = OBJECT.to_vec();
    let file = object::File::parse(OBJECT).expect("an ELF object");
    for name in sections {
        let section = file.section_by_name(name).expect("programs");
        let (start, _) = section.file_range().expect("bytes");
        let start = usize::try_from(start).expect("an offset");
        object[start..start + EXIT.len()].copy_from_slice(&EXIT);
    }
    object
}

#[test]
fn on_a_kernel_without_tcx_a_guard_that_it_rejects_is_left_out_and_the_rest_is_attached() {
    sandbox(|pins| {
        let object = with_rejected_programs(&["xdp.frags", "xdp"]);
        let error = refusal(try_open(pins, &object));
        assert!(matches!(error, DatapathError::Verifier { .. }), "{error}");

        deny_bpf_here(BpfDenial::Links).expect("a seccomp filter");
        let mut agent = try_open(pins, &object).expect("without its guard");
        let egress = veth("pod");
        let guard = |xdp| Attachment {
            xdp,
            ..at(Hook::Guard, "pod")
        };
        let wanted = [egress.clone(), guard(XdpMode::NativeIfSupported)];
        let summary = agent.sync_links(&wanted.into());
        assert!(summary.failed.is_empty(), "{:?}", summary.failed);
        assert_eq!(summary.created, 1);
        let filters = output("tc filter show dev pod ingress");
        assert!(
            filters.contains("overlay_egress direct-action"),
            "{filters}"
        );

        // Who insists on the guard is told.
        let wanted = [egress, guard(XdpMode::Native)];
        let summary = agent.sync_links(&wanted.into());
        let [(_, error)] = &summary.failed[..] else {
            panic!("{:?}", summary.failed);
        };
        assert!(error.to_string().contains("--xdp=off"), "{error}");
    });
}

#[test]
fn a_kernel_without_xdp_on_fragments_has_the_guard_without_them() {
    sandbox(|pins| {
        let object = with_rejected_programs(&["xdp.frags"]);
        let mut agent = try_open(pins, &object).expect("with the other guard");
        veth("pod");
        let guard = Attachment {
            xdp: XdpMode::Generic,
            ..at(Hook::Guard, "pod")
        };
        let summary = agent.sync_links(&[guard].into());
        assert_eq!((summary.created, summary.failed.len()), (1, 0));
        let attached = output("bpftool net show dev pod");
        assert!(attached.contains("generic id"), "{attached}");
        let programs = output("bpftool prog show name overlay_guard_1");
        assert!(programs.contains("overlay_guard_1"), "{programs}");
    });
}

#[test]
fn a_rejected_program_is_reported_with_the_verifiers_own_words() {
    sandbox(|pins| {
        let object = with_rejected_programs(&["classifier"]);
        let error = refusal(try_open(pins, &object));
        assert!(matches!(error, DatapathError::Verifier { .. }), "{error}");
        assert!(error.to_string().contains("unreachable insn 1"), "{error}");
    });
}
