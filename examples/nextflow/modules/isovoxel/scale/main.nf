// Scales an image to isotropic voxels: a module in the style of nf-core, for pipelines that keep results in their own folders.
//
// `task.ext.args` has options of `isovoxel scale`. Each try starts in a new folder, so a retry starts again; the recipe
// beside it, main.nf, writes to one place and resumes there.
process ISOVOXEL_SCALE {
    tag "$meta.id"
    label 'process_medium'

    conda "${moduleDir}/environment.yml"
    container "isovoxel"

    input:
    tuple val(meta), path(image)

    output:
    tuple val(meta), path("${prefix}.ome.zarr"), emit: zarr
    path "versions.yml"                        , emit: versions

    when:
    task.ext.when == null || task.ext.when

    script:
    def args = task.ext.args ?: ''
    prefix   = task.ext.prefix ?: "${meta.id}"
    """
    isovoxel scale \\
        $args \\
        --threads ${task.cpus} \\
        ${image} \\
        ${prefix}.ome.zarr

    cat <<-END_VERSIONS > versions.yml
    "${task.process}":
        isovoxel: \$(isovoxel --version | sed 's/isovoxel //')
    END_VERSIONS
    """

    stub:
    prefix = task.ext.prefix ?: "${meta.id}"
    """
    mkdir ${prefix}.ome.zarr
    touch ${prefix}.ome.zarr/zarr.json

    cat <<-END_VERSIONS > versions.yml
    "${task.process}":
        isovoxel: \$(isovoxel --version | sed 's/isovoxel //')
    END_VERSIONS
    """
}
