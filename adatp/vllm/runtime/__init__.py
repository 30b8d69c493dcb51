"""What runs inside vLLM's processes. The modules of this folder import vLLM; its version is checked before."""

from adatp.vllm.version import check_version

check_version()
