//! The serde form of `kvm_vcpu_events`, field by field, as in `registers.rs`.

use kvm_bindings::{
    kvm_vcpu_events, kvm_vcpu_events__bindgen_ty_1 as KvmException,
    kvm_vcpu_events__bindgen_ty_2 as KvmInterrupt, kvm_vcpu_events__bindgen_ty_3 as KvmNmi,
    kvm_vcpu_events__bindgen_ty_4 as KvmSmi, kvm_vcpu_events__bindgen_ty_5 as KvmTripleFault,
};
use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize)]
#[serde(remote = "kvm_vcpu_events")]
pub(super) struct Events {
    #[serde(with = "Exception")]
    exception: KvmException,
    #[serde(with = "Interrupt")]
    interrupt: KvmInterrupt,
    #[serde(with = "Nmi")]
    nmi: KvmNmi,
    sipi_vector: u32,
    flags: u32,
    #[serde(with = "Smi")]
    smi: KvmSmi,
    #[serde(with = "TripleFault")]
    triple_fault: KvmTripleFault,
    #[serde(skip)]
    reserved: [u8; 26],
    exception_has_payload: u8,
    exception_payload: u64,
}

#[derive(Serialize, Deserialize)]
#[serde(remote = "KvmException")]
struct Exception {
    injected: u8,
    nr: u8,
    has_error_code: u8,
    pending: u8,
    error_code: u32,
}

#[derive(Serialize, Deserialize)]
#[serde(remote = "KvmInterrupt")]
struct Interrupt {
    injected: u8,
    nr: u8,
    soft: u8,
    shadow: u8,
}

#[derive(Serialize, Deserialize)]
#[serde(remote = "KvmNmi")]
struct Nmi {
    injected: u8,
    pending: u8,
    masked: u8,
    #[serde(skip)]
    pad: u8,
}

#[derive(Serialize, Deserialize)]
#[serde(remote = "KvmSmi")]
struct Smi {
    smm: u8,
    pending: u8,
    smm_inside_nmi: u8,
    latched_init: u8,
}

#[derive(Serialize, Deserialize)]
#[serde(remote = "KvmTripleFault")]
struct TripleFault {
    pending: u8,
}
