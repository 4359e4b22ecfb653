"""Facts about the Well's file format that several modules need."""

SPLITS = ("train", "valid", "test")
HDF5 = (".h5", ".hdf5")
ORDERS = (0, 1, 2)  # of the tensors: scalar, vector, matrix
GROUPS = ("dimensions", "boundary_conditions", "scalars", "t0_fields", "t1_fields", "t2_fields")
ATTRIBUTES = ("dataset_name", "grid_type", "n_spatial_dims", "n_trajectories")
TABLES = ("mean", "std", "mean_delta", "std_delta")  # of stats.yaml
