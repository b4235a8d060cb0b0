"""A rehearsal's stand-in for Intel's package of this name: the names that optimum-habana, accelerate and transformers use.

It lies on the path of a rehearsal's processes only. Written from those libraries' use of it and from Intel's public
documentation; what stands behind the names is asr.rehearsal.
"""
